"""Whether a model reads prompts in a packed row as it does one by one: found out, not looked up.

A few tokens are run both ways and compared, once a model. Among them is a token at a position as
far out as the longest prompt, for rotary embeddings that change with the length of what is read.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from probes.attention import Plan, attending
from probes.batches import padded
from probes.blocks import blocks, input_device, position_ids, reading
from probes.errors import InputError
from probes.packing import MIN_SHARED, Pack, Segment, pack
from probes.rendering import Rendered
from probes.tail import OUTPUT, gap, offloaded, tail


@dataclass(frozen=True)
class Packable:
    """What of a model may be run packed."""

    limit: int
    """Longest prompt (tokens) that may be packed; 0 for none."""
    tails: frozenset[int] = frozenset()
    """Blocks whose rest may be run for some tokens alone."""


NOT_PACKABLE = Packable(0)
# Of each decoder, by the attention it is configured for and the longest prompt asked for.
_KNOWN: WeakKeyDictionary[nn.Module, dict[tuple[str | None, int], Packable]] = WeakKeyDictionary()


def packable(decoder: nn.Module, longest: int) -> Packable:
    """Find out what of a decoder may be run packed, with prompts of up to `longest` tokens."""
    config: Any = decoder.config.get_text_config()  # type: ignore[operator,union-attr]
    bound = _bound(config, longest)
    known = _KNOWN.setdefault(decoder, {})
    key = config._attn_implementation, bound
    if key not in known:
        known[key] = _try(decoder, bound)
        # Rotary embeddings may change beyond the length that a model was first trained on.
        first = (getattr(config, "rope_parameters", None) or {}).get(
            "original_max_position_embeddings", bound
        )
        if known[key] == NOT_PACKABLE and isinstance(first, int) and first < bound:
            known[key] = _try(decoder, first)
    return known[key]


def _bound(config: Any, longest: int) -> int:
    """A power of two for all like lengths, as far as there are positions."""
    most = getattr(config, "max_position_embeddings", None)
    most = most if isinstance(most, int) else longest
    return min(1 << max(6, (longest - 1).bit_length()), max(most, longest))


def _try(decoder: nn.Module, longest: int) -> Packable:
    try:
        return _compared(decoder, longest)
    except (torch.OutOfMemoryError, InputError):
        raise
    except Exception:  # whatever a model does with such a row: it reads its prompts padded
        return NOT_PACKABLE


def _compared(decoder: nn.Module, longest: int) -> Packable:
    rows = _rows(decoder)
    device = input_device(decoder)
    n_blocks = len(blocks(decoder))
    ids, mask = padded(rows, 0, "right")
    alone = _outputs(decoder, ids.to(device), mask.to(device), None)
    packed = _with_far_token(pack(rows), longest - 1)
    plan = Plan(packed, loop=device.type == "cpu", longest=longest, plain=longest)
    found: set[int] = set()
    with attending(decoder, plan), _tails(decoder, found):
        outputs = _outputs(
            decoder,
            packed.ids[None].to(device),
            torch.ones_like(packed.ids)[None].to(device),
            packed.positions[None].to(device),
        )
    if plan.calls != n_blocks:  # some block mixes tokens in a way of its own
        return NOT_PACKABLE
    tolerance = _tolerance(alone[0].dtype)
    for one, other in zip(outputs, alone, strict=True):
        for i, path in enumerate(packed.paths):
            if not gap(one[0, path], other[i, : len(path)]) <= tolerance:
                return NOT_PACKABLE
    return Packable(plan.plain, frozenset(found))


def _rows(decoder: nn.Module) -> list[Rendered]:
    """Three short prompts; the first two begin alike."""
    n = decoder.get_input_embeddings().num_embeddings  # type: ignore[operator]
    first, second = range(1, MIN_SHARED + 6), range(30, 33)
    chosen = ([*first], [*first[:-4], *second], [*second, *first[:2]])
    return [Rendered(tuple(i % n for i in ids), len(ids) - 1, truncated=False) for ids in chosen]


def _with_far_token(packed: Pack, position: int) -> Pack:
    """Behind the prompts a token by itself, at a far position."""
    at = torch.tensor([len(packed.ids)])
    return replace(
        packed,
        ids=torch.cat([packed.ids, packed.ids[:1]]),
        positions=torch.cat([packed.positions, torch.tensor([position])]),
        segments=(*packed.segments, Segment(int(at), 1, at)),
    )


def _outputs(
    decoder: nn.Module, ids: Tensor, mask: Tensor, positions: Tensor | None
) -> list[Tensor]:
    """What each block gives, on the CPU."""
    kept: list[Tensor] = []

    def keep(_module: nn.Module, _args: object, output: Any) -> None:
        kept.append((output if isinstance(output, Tensor) else output[0]).cpu())

    handles = [block.register_forward_hook(keep) for block in blocks(decoder)]
    try:
        with reading(decoder):
            decoder(
                input_ids=ids,
                attention_mask=mask,
                position_ids=position_ids(mask) if positions is None else positions,
                use_cache=False,
            )
    finally:
        for handle in handles:
            handle.remove()
    return kept


@contextmanager
def _tails(decoder: nn.Module, found: set[int]) -> Iterator[None]:
    """While a decoder runs, collect the blocks whose `probes.tail.tail` gives what they give."""
    handles = []
    try:
        for layer, block in enumerate(blocks(decoder)):
            if tail(block) is None or offloaded(block):
                continue
            kept: dict[str, Tensor] = {}
            handles += [
                block.register_forward_pre_hook(_keep(kept, "pre"), with_kwargs=True),
                block.get_submodule(OUTPUT).register_forward_pre_hook(
                    _keep(kept, "heads"), with_kwargs=True
                ),
                block.register_forward_hook(_compare(layer, kept, found)),
            ]
        yield
    finally:
        for handle in handles:
            handle.remove()


def _keep(kept: dict[str, Tensor], name: str) -> Callable[..., None]:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        kept[name] = args[0] if args else kwargs["hidden_states"]

    return hook


def _compare(layer: int, kept: dict[str, Tensor], found: set[int]) -> Callable[..., None]:
    def hook(block: nn.Module, _args: object, output: Any) -> None:
        output = output if isinstance(output, Tensor) else output[0]
        rest, some = tail(block), [2, 9]
        assert rest is not None
        try:
            ours = rest(kept["pre"][:, some], kept["heads"][:, some])["resid_post"]
            if gap(ours, output[:, some]) <= _tolerance(output.dtype):
                found.add(layer)
        except torch.OutOfMemoryError:
            raise
        except Exception:
            return  # such as an MLP that gives more than one thing: the whole block is run

    return hook


def _tolerance(dtype: torch.dtype) -> float:
    """What rounding may come to over all blocks, as a share of an activation's length."""
    eps = torch.finfo(dtype).eps
    if dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest":
        eps = 2**-10  # TF32's
    return max(1e-4, 8 * eps)
