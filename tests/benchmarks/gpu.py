"""What counts on one GPU: an 8B-shaped Llama in bfloat16, of random weights.

The step is adaptive KL's beside plain fine-tuning's, in time and in the allocator's peak. Of the
capture it is measured how much of the card is used: its model's arithmetic, in the time that the
card's own fastest matrix product would take for it, over the time that it takes; and how much of
the way from a file to a cache on disk is the capture itself.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import nn

from tests.benchmarks import capture, pipeline, step
from tests.benchmarks.cases import Against, Baseline, Group
from tests.benchmarks.workloads import Shape, chats

PEAK_SHARE = 0.6
"""Of the card's matrix products, which the capture is to reach."""
BF16 = 5e-2
"""Tolerance: over the layers bfloat16's rounding, 2^-8, adds up differently in other batches."""


class Scale(NamedTuple):
    """How large all of it is."""

    shape: Shape = Shape("Llama", 4096, 14336, 32, 32, 8, 128_256)
    examples: int = 2
    length: int = 2048
    """Tokens of a training example."""
    prompts: int = 512
    batch: int = 64
    """Prompts of the padded batches."""
    square: int = 8192
    """Rows and columns of the matrices that tell the card's peak."""
    device: str = "cuda"
    dtype: torch.dtype = torch.bfloat16


EIGHT = Scale()


def groups(scale: Scale = EIGHT) -> tuple[Group, ...]:
    """All of it; a smaller `scale` on the CPU shows that it runs."""
    case = "Llama of 8B, bfloat16"
    size = step.Size(scale.shape, scale.examples, scale.length, scale.device, scale.dtype, True)
    peak = Baseline("the card's matrix products", partial(_peak, scale.square), goal=PEAK_SHARE)
    return (
        Group(
            "step-gpu", f"{case}, {scale.examples} x {scale.length} tokens",
            partial(step.build, size), step.ours,
            (step.SFT, step.CHUNKED, step.TEXTBOOK_OFF, step.OFF), BF16, device=scale.device,
        ),
        _reading(
            scale, f"{case}, {scale.prompts} prompts, nothing shared", 0, (peak, capture.SORTED)
        ),
        _reading(scale, f"{case}, {scale.prompts} chats", 25, (capture.SORTED,)),
        pipeline.group(
            bench="capture-gpu", case=f"{case}, a file of {scale.prompts} prompts to a cache",
            shape=scale.shape, n=scale.prompts, device=scale.device, dtype=scale.dtype,
        ),
    )  # fmt: skip


def _reading(scale: Scale, case: str, shared: int, baselines: tuple[Baseline, ...]) -> Group:
    prompts = chats(scale.prompts, shared=shared)
    work = capture.Workload(
        case, scale.shape, prompts, baselines, batch=scale.batch, device=scale.device,
        dtype=scale.dtype,
    )  # fmt: skip
    return Group(
        "capture-gpu", case, work.build, capture.ours, baselines, BF16, device=scale.device
    )


def flops(model: nn.Module, prompts: list[tuple[int, ...]]) -> float:
    """Floating-point operations that the blocks must do for these prompts, each by itself.

    Two a weight and token; and of attention, causal, 2 d t^2 a prompt of t tokens and layer: half
    of q k^T and of its product with v, which take 2 d t^2 each.
    """
    body = model.get_decoder()  # type: ignore[operator]
    blocks = body.layers
    weights = sum(m.weight.numel() for m in blocks.modules() if isinstance(m, nn.Linear))
    tokens = sum(map(len, prompts))
    squares = sum(len(prompt) ** 2 for prompt in prompts)
    return 2 * weights * tokens + 2 * len(blocks) * body.config.hidden_size * squares


def _peak(square: int, built: capture.Built) -> Against:
    """As many products as come nearest to the capture's arithmetic, and their share of it."""
    weight = next(built.model.parameters())
    a = torch.randn(square, square, device=weight.device, dtype=weight.dtype)
    one = 2 * square**3
    times = max(1, round(flops(built.model, built.prompts) / one))

    def job() -> None:
        for _ in range(times):
            a @ a
        if a.is_cuda:
            torch.cuda.synchronize()

    share = times * one / flops(built.model, built.prompts)
    return Against(job, share=share, compared=False)
