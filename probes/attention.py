"""Attention in a packed row: each token sees its own prompt, through transformers' own interface.

transformers asks `config._attn_implementation` which function attends and which one makes the mask.
For the time of a pass both are ours. A mask of the whole row is never made: each segment of the row
gathers the keys of its prompt.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig

from probes.packing import Pack, Segment

NAME = "packed_prompts"
# What transformers hands on beside these changes the attention itself: a cap of the logits, sinks,
# a bias of positions. `sliding_window` is looked at.
HARMLESS = {"dropout", "output_attentions", "position_ids", "sliding_window", "use_cache"}
# Segments that attend in one call differ in length by no more than this share of the longest.
ALIKE = 0.75


class UnpackableError(Exception):
    """A model attends in a way that a packed row cannot follow."""


@dataclass(frozen=True)
class Together:
    """Segments of like length that attend in one call. Rows are padded at their end."""

    queries: Int[Tensor, "segment query"]
    """Where each query stands in the packed row."""
    keys: Int[Tensor, "segment key"]
    """Where each key stands."""
    mask: Bool[Tensor, "segment 1 query key"]
    """Which keys each query sees; padding sees the first."""
    real: Bool[Tensor, "segment query"]
    """Which queries are not padding."""


@dataclass
class Plan:
    """How one packed row attends."""

    pack: Pack
    loop: bool
    """One call a segment, which is fastest on a CPU; else segments of like length together."""
    longest: int = 0
    """Longest prompt (tokens) up to which masks are examined; 0 for not at all."""
    plain: int = 0
    """Longest prompt up to which every examined mask was the causal one."""
    calls: int = 0
    """How often the model has attended."""
    _here: dict[torch.device, Any] = field(default_factory=dict)

    def at(self, device: torch.device, make: Callable[[], Any]) -> Any:
        """What `make` gives, made once for each device."""
        if device not in self._here:
            self._here[device] = make()
        return self._here[device]


_PLAN: ContextVar[Plan] = ContextVar("plan")


@contextmanager
def attending(decoder: nn.Module, plan: Plan) -> Iterator[None]:
    """Have a decoder attend by a plan. Its configuration is afterwards as before."""
    before = [(config, config._attn_implementation) for config in _configs(decoder)]
    token = _PLAN.set(plan)
    try:
        for config, _ in before:
            config._attn_implementation = NAME
        yield
    finally:
        for config, name in before:
            config._attn_implementation = name
        _PLAN.reset(token)


def _configs(decoder: nn.Module) -> list[PreTrainedConfig]:
    """Every configuration that a module of a decoder holds, a composite one before its parts."""
    found: dict[int, PreTrainedConfig] = {}

    def add(config: PreTrainedConfig) -> None:
        if id(config) not in found:
            found[id(config)] = config
            for name in config.sub_configs:
                if isinstance(part := getattr(config, name, None), PreTrainedConfig):
                    add(part)

    for module in decoder.modules():
        if isinstance(config := getattr(module, "config", None), PreTrainedConfig):
            add(config)
    return list(found.values())


def attend(
    module: nn.Module,
    query: Float[Tensor, "batch head token d_key"],
    key: Float[Tensor, "batch kv_head key d_key"],
    value: Float[Tensor, "batch kv_head key d_value"],
    attention_mask: object = None,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Float[Tensor, "1 token head d_value"], None]:
    """softmax(q k^T scaling) v within each prompt, as transformers' attention functions do it.

    Raises:
        UnpackableError: The model asks for more than that.
    """
    plan = _PLAN.get()
    plan.calls += 1
    strange = [name for name, it in kwargs.items() if name not in HARMLESS and it is not None]
    if kwargs.get("dropout"):
        strange.append("dropout")
    if strange or attention_mask is not None:
        raise UnpackableError(f"attention with {', '.join(strange) or 'a mask of its own'}")
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    n = len(plan.pack.ids)
    if not causal or any(len(it) != 1 or it.shape[2] != n for it in (query, key, value)):
        raise UnpackableError("attention to other tokens than those up to each")
    if (window := kwargs.get("sliding_window")) is not None:
        plan.plain = min(plan.plain, int(window))
    q, k, v = (it[0].transpose(0, 1) for it in (query, key, value))
    return (_looped if plan.loop else _together)(plan, q, k, v, scaling)[None], None


def _looped(
    plan: Plan,
    query: Float[Tensor, "token head d_key"],
    key: Float[Tensor, "token kv_head d_key"],
    value: Float[Tensor, "token kv_head d_value"],
    scaling: float | None,
) -> Float[Tensor, "token head d_value"]:
    """Segment by segment. Of equal length is the causal kernel, which skips half of the work."""
    segments = plan.pack.segments
    width = max((len(one.path) for one in segments if one.shared), default=0)
    mask = plan.at(query.device, lambda: triangle(width, query))
    gqa = query.shape[1] != key.shape[1]
    out = query.new_empty(*query.shape[:2], value.shape[2], dtype=value.dtype)
    for one in segments:
        own = slice(one.start, one.start + one.length)
        if one.shared:
            path = one.path.to(query.device)
            k, v = key.index_select(0, path), value.index_select(0, path)
        else:
            k, v = key[own], value[own]
        q, k, v = (it.transpose(0, 1)[None] for it in (query[own], k, v))
        found = scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask[one.shared : len(one.path), : len(one.path)] if one.shared else None,
            is_causal=not one.shared,
            scale=scaling,
            enable_gqa=gqa,
        )
        out[own] = found[0].transpose(0, 1)
    return out


def triangle(width: int, like: Tensor) -> Float[Tensor, "width width"]:
    """0 up to the diagonal, -inf beyond it: added to logits, it lets each token see those before.

    Added rather than looked up: from a Boolean mask torch makes such a one at every call.
    """
    return like.new_full((width, width), -torch.inf).triu_(1)


def _together(
    plan: Plan,
    query: Float[Tensor, "token head d_key"],
    key: Float[Tensor, "token kv_head d_key"],
    value: Float[Tensor, "token kv_head d_value"],
    scaling: float | None,
) -> Float[Tensor, "token head d_value"]:
    """Segments of like length in one call: a GPU waits for no Python.

    The query heads that share a key head become rows of one longer query, so that no key is copied
    for them: the kernels that take a mask know no groups.
    """
    device = query.device
    groups = query.shape[1] // key.shape[1]
    out = query.new_empty(*query.shape[:2], value.shape[2], dtype=value.dtype)
    for batch in plan.at(device, lambda: together(plan.pack.segments, device)):
        n, width = batch.queries.shape
        # [segment, query, kv_head, group, d] -> [segment, kv_head, group * query, d]
        q = query[batch.queries].unflatten(2, (-1, groups)).permute(0, 2, 3, 1, 4).flatten(2, 3)
        found = scaled_dot_product_attention(
            q,
            key[batch.keys].transpose(1, 2),
            value[batch.keys].transpose(1, 2),
            attn_mask=batch.mask.repeat(1, 1, groups, 1),
            scale=scaling,
        )
        found = (
            found.unflatten(2, (groups, width))
            .permute(0, 3, 1, 2, 4)
            .reshape(n, width, query.shape[1], -1)
        )
        out[batch.queries[batch.real]] = found[batch.real]
    return out


def together(segments: Sequence[Segment], device: torch.device) -> list[Together]:
    """Segments in batches of like length. A batch gathers no more keys than four such rows have."""
    most = 4 * max(sum(one.length for one in segments), max(len(one.path) for one in segments))
    waiting = sorted(segments, key=lambda one: (-len(one.path), -one.length, one.start))
    found: list[Together] = []
    while waiting:
        width = len(waiting[0].path)
        first = waiting[: max(1, most // width)]
        batch = [one for one in first if len(one.path) >= ALIKE * width]
        found.append(_padded(batch, device))
        waiting = waiting[len(batch) :]
    return found


def _padded(batch: Sequence[Segment], device: torch.device) -> Together:
    n_queries = max(one.length for one in batch)
    n_keys = -(-max(len(one.path) for one in batch) // 8) * 8  # as fast kernels want them
    queries = torch.zeros(len(batch), n_queries, dtype=torch.long)
    keys = torch.zeros(len(batch), n_keys, dtype=torch.long)
    seen = torch.zeros(len(batch), n_queries, dtype=torch.long)
    for i, one in enumerate(batch):
        queries[i, : one.length] = torch.arange(one.start, one.start + one.length)
        keys[i, : len(one.path)] = one.path
        seen[i, : one.length] = torch.arange(one.shared, len(one.path))
    lengths = torch.tensor([one.length for one in batch])
    mask = torch.arange(n_keys) <= seen[..., None]
    real = torch.arange(n_queries) < lengths[:, None]
    return Together(*(it.to(device) for it in (queries, keys, mask[:, None], real)))


def examine(*_: object, mask_function: Callable[..., Tensor], **kwargs: Any) -> None:
    """Make no mask. Where a plan wants to know, find up to which length it would be the causal one.

    `mask_function` says for a query's and a key's place whether the one sees the other.
    """
    plan = _PLAN.get()
    if kwargs.get("use_vmap"):  # a function of the model's own, that may take single numbers only
        plan.plain = 0
    if not plan.longest:
        return
    device = kwargs.get("device")
    zero, keys = torch.tensor(0, device=device), torch.arange(plan.longest, device=device)
    for queries in keys.split(max(1, 2**22 // plan.longest)):
        if plan.plain <= int(queries[0]):
            return
        sees = mask_function(zero, zero, queries[:, None], keys[None])
        other = (sees != (keys <= queries[:, None])).any(1).nonzero()
        if len(other):
            plan.plain = min(plan.plain, int(queries[other[0]]))


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, examine)
