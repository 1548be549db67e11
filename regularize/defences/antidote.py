"""Antidote: after training, the weights that harmful answers lean on most are set to zero.

Huang et al. 2024, arXiv 2408.09600 ("Antidote: Post-fine-tuning safety alignment for large language
models against harmful fine-tuning"). Training itself is plain fine-tuning. Then harmful requests
complied with, none of them in the training data, are read once; with X_j the j-th input of a linear
map W at their tokens (the score is Wanda's, arXiv 2306.11695),

    S_ij = |W_ij| sqrt(mean X_j^2),    m = 1 at the largest S of each row i,    W <- (1 - m) W

By which steps the weights became harmful does not matter. But what the task has put into the same
entries goes too, and to take any entries from an adapter brings the model nearer to the aligned
one: compare with `mask` random, as many entries of each row by chance.

The paper writes of w, the fine-tuned model's weights, scores |w_j| ||X_j|| as a mean over requests
of the norm over a request's tokens, and marks the largest share alpha of all. The released code,
which we follow, takes the root of the mean square over all requests together, compares within each
row, counts all tokens of prompt and answer, and scores all maps before it changes one. It looks at
few of them: A and B of the LoRA adapter, or q, k and v where all weights are trained. So `on` is

    adapter     A and B: all that fine-tuning has added. The aligned model below stays as it is, the
                result is still an adapter, and dense_ratio 1 is the aligned model. The default.
    attention   q, k and v of a model trained whole (--full).
    linear      The paper's w: all linear maps of the blocks, of a model trained whole.

The last two also take from what the model knew before, and no adapter can hold that: with LoRA they
are refused. A share is rounded up to whole entries, as in the released code: at rank 8 a row of B
loses one of 8 at .05 and at .1 alike (its authors' rank is 256).

We depart from that code in two things. Its random control draws from the whole matrix, ours as many
from each row as the score marks. And it keeps all requests' inputs to a block, tokens x d_model
numbers; here squares are summed up on the way, d_in numbers a map. The cost is one forward pass
over the harmful data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from probes.errors import InputError
from regularize.defences import Defence, Given, Steps, share

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float, Int
    from torch import Tensor, nn

    from regularize.data import Encoded

TOKEN_BUDGET = 4096
"""Padded tokens in one forward pass."""
ATTENTION = ("q_proj", "k_proj", "v_proj", "qkv_proj")
"""Maps of attention's input, as transformers calls them; the last is all three in one."""


@dataclass(frozen=True)
class Antidote(Defence):
    """W <- (1 - m) W after training, m = 1 at the largest |W_ij| sqrt(mean X_j^2) of each row."""

    dense_ratio: float = 0.1
    """Share of each output row's entries that is set to zero, rounded up to whole entries. 0 leaves
    all as it was trained. The released code's: .1, for GSM8K .05."""
    on: Literal["adapter", "attention", "linear"] = "adapter"
    """Which linear maps. adapter: A and B of LoRA; attention: q, k and v, and linear: all of the
    blocks, of a model trained with --full."""
    mask: Literal["wanda", "random"] = "wanda"
    """wanda: by the score on harmful data; random: as many entries of each row by chance, the
    control."""

    needs_risk = False
    needs = ("harmful",)

    def check(self) -> None:
        """Raise InputError for options that mean nothing."""
        share("dense-ratio", self.dense_ratio)

    def steps(self, policy: nn.Module, given: Given) -> Steps:
        """Nothing at any step; but what `after` could not do is refused before training.

        Raises:
            InputError: The policy has no such maps, or a harmful row cannot be rendered.
        """
        self.maps(policy)
        _encoded(given)
        return Steps()

    def after(self, policy: nn.Module, given: Given) -> None:
        """Set the marked entries to zero, in place.

        Raises:
            InputError: The policy has no such maps, or a harmful row cannot be rendered.
        """
        import torch

        from probes.capture import pad_id

        maps = self.maps(policy)
        if self.mask == "wanda":
            pad = pad_id(given.chat.tokenizer)
            norms = input_norms(policy, maps, _encoded(given), pad=pad)
            scores = (
                one.weight.detach().float().abs() * norm
                for one, norm in zip(maps, norms, strict=True)
            )
        else:  # on the CPU, so that all devices draw the same
            chance = torch.Generator().manual_seed(given.seed)
            scores = (torch.rand(one.weight.shape, generator=chance) for one in maps)
        with torch.no_grad():
            for one, score in zip(maps, scores, strict=True):
                where = largest(score, self.dense_ratio).to(one.weight.device)
                one.weight.scatter_(1, where, 0.0)

    def maps(self, policy: nn.Module) -> list[nn.Linear]:
        """The linear maps whose entries are compared.

        Raises:
            InputError: There are none, or the adapter consists of more than them.
        """
        return _of_adapter(policy) if self.on == "adapter" else _of_model(policy, self.on)


def largest(score: Float[Tensor, "d_out d_in"], ratio: float) -> Int[Tensor, "d_out entry"]:
    """Places of the largest scores in each row: ceil(ratio d_in) of them."""
    import math

    # .07 x 100 is a little more than 7 in floating point, and would be rounded up to 8.
    n = math.ceil(round(ratio * score.shape[1], 6))
    return score.topk(n, dim=1).indices


def input_norms(
    policy: nn.Module,
    maps: Sequence[nn.Linear],
    rows: Sequence[Encoded],
    *,
    pad: int = 0,
    token_budget: int = TOKEN_BUDGET,
) -> list[Float[Tensor, "d_in"]]:
    """sqrt(mean X_j^2) of each map's inputs, over all tokens of the rows, without dropout.

    Args:
        policy: The model, with its adapter.
        maps: Some of its modules.
        rows: Encoded examples.
        pad: Id of the padding token, which is not counted.
        token_budget: Padded tokens in one forward pass.

    Returns:
        For each map, in float32 and where its weight is.
    """
    import torch

    from probes.blocks import evaluating
    from regularize.model import base_of
    from regularize.passes import answer_states

    squares = [torch.zeros(one.in_features, device=one.weight.device) for one in maps]
    base: Any = base_of(policy)
    real = torch.empty(0)

    def note(module: nn.Module, args: object, options: dict[str, Any]) -> None:  # noqa: ARG001
        nonlocal real
        real = options["attention_mask"].flatten().bool()

    def adds_to(total: Tensor) -> Any:
        def add(module: nn.Module, args: tuple[Tensor, ...], output: object) -> None:  # noqa: ARG001
            x = args[0].flatten(0, -2)
            total.add_(x[real.to(x.device)].float().square().sum(0))

        return add

    hooks = [base.get_decoder().register_forward_pre_hook(note, with_kwargs=True)]
    try:
        hooks += [
            one.register_forward_hook(adds_to(total))
            for one, total in zip(maps, squares, strict=True)
        ]
        with torch.no_grad(), evaluating(policy):
            for _ in answer_states(base, rows, token_budget=token_budget, pad=pad):
                pass
    finally:
        for hook in hooks:
            hook.remove()
    n_tokens = sum(len(row.input_ids) for row in rows)
    return [(total / n_tokens).sqrt() for total in squares]


def _encoded(given: Given) -> list[Encoded]:
    """The harmful requests with their answers, as the model reads them."""
    from probes.models import context_length
    from regularize.data import encode

    limit = context_length(given.chat.model)
    return [encode(one, given.chat.tokenizer, max_length=limit) for one in given.harmful]


def _of_adapter(policy: nn.Module) -> list[nn.Linear]:
    """A and B of the active adapter, layer by layer."""
    from peft.tuners.lora import LoraLayer
    from torch import nn

    layers = [one for one in policy.modules() if isinstance(one, LoraLayer)]
    if any(one.lora_variant or one.lora_embedding_A for one in layers):
        raise InputError(
            "--defence.on adapter knows plain LoRA on linear maps; this adapter has magnitudes "
            "(DoRA), embeddings or the like besides, which would stay as they were trained"
        )
    found: list[Any] = [
        maps[name]
        for one in layers
        for maps in (one.lora_A, one.lora_B)
        for name in one.active_adapters
        if name in maps
    ]
    if not found or not all(isinstance(one, nn.Linear) for one in found):
        raise InputError(
            "--defence.on adapter sets entries of a LoRA adapter's A and B to zero, and the policy "
            "has none; for a model that is trained whole give --defence.on attention or linear"
        )
    return found


def _of_model(policy: nn.Module, on: Literal["attention", "linear"]) -> list[nn.Linear]:
    """q, k and v, or all linear maps, block by block."""
    from torch import nn

    from probes.blocks import blocks
    from regularize.model import base_of

    if base_of(policy) is not policy:
        raise InputError(
            f"--defence.on {on} sets entries of the model's own weights to zero, which an adapter "
            "cannot hold: train the whole model (--full), or give --defence.on adapter"
        )
    found = [
        module
        for block in blocks(policy)
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear)
        and (on == "linear" or name.rpartition(".")[2] in ATTENTION)
    ]
    if not found:
        raise InputError(
            f"--defence.on {on}: the blocks of this {type(policy).__name__} have no such linear "
            f"maps{' (' + ', '.join(ATTENTION) + ')' if on == 'attention' else ''}"
        )
    return found
