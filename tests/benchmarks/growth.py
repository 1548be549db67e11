"""How time and memory grow with one thing at a time, beside what the work itself must have.

Of the capture the exponent that must be is that of its arithmetic at these very sizes (see
`gpu.flops`); memory does not grow with what is streamed. All sizes of one quantity are timed turn
by turn; each ratio is to the smallest of the same round.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from rich.table import Table
from torch import Tensor
from tqdm import tqdm

from analysis import results
from analysis.exponents import Exponent, exponent, in_words, too_fast
from analysis.results import GrowthRow
from regularize import interleave, memory
from regularize.losses import Head, moments, regularized
from tests.benchmarks import capture, fit, gpu, place
from tests.benchmarks.workloads import Shape, chats

MIB = 2**20
SMALL = Shape(d_model=256, d_mlp=704, n_layers=4, heads=4, kv_heads=4, vocabulary=2_000)
PROMPTS, LENGTH, BUDGET = 32, 64, 1024
"""Prompts, tokens of each, tokens of a batch: small, so that every size fills some batches."""
ROWS, WIDTHS = 2048, (64, 128, 256, 512, 1024)
"""Rows that are fitted, and how many numbers each has."""
TOKENS, VOCABULARY, WIDTH = 512, 16_000, 256
"""Answer tokens, rows and columns of the head."""


class Job(NamedTuple):
    """What is timed at one size."""

    run: Callable[[], object]
    output: int = 0
    """Bytes of the result, which the peak is given without."""
    work: float = math.nan
    """Operations that it must do, if they can be counted."""


class Quantity(NamedTuple):
    """One thing that grows while all else stays."""

    bench: str
    name: str
    sizes: tuple[int, ...]
    build: Callable[[int], Job]
    time: float
    """Exponent that the time must have; NaN: that of the work at these sizes."""
    memory: float
    """Exponent that the peak must have at most."""

    @property
    def title(self) -> str:
        """What it is called on the command line."""
        return f"{self.bench} against {self.name}"


def quantities() -> tuple[Quantity, ...]:
    """All that is measured."""
    of_capture = partial(Quantity, "capture")
    count = math.nan
    return (
        of_capture("prompts", (16, 32, 64, 128, 256), lambda n: _capture(n=n), count, 0),
        of_capture(
            "prompt length", (64, 128, 256, 512, 1024), lambda n: _capture(length=n), count, 0
        ),
        of_capture("layers", (2, 4, 8, 16), lambda n: _capture(n_layers=n), count, 0),
        of_capture(
            "width", (128, 256, 512, 1024),
            lambda n: _capture(d_model=n, d_mlp=n * 11 // 4, heads=n // 64, kv_heads=n // 64),
            count, 1,
        ),
        of_capture(
            "vocabulary", (2_000, 8_000, 32_000, 128_000), lambda n: _capture(vocabulary=n),
            count, 0,
        ),
        Quantity("fit", "prompts", (1024, 2048, 4096, 8192), lambda n: _fit(n=n), 1, 1),
        Quantity("fit", "width", WIDTHS, lambda n: _fit(width=n), 2, _fits_memory(WIDTHS)),
        Quantity("loss", "answer tokens", (256, 512, 1024, 2048), lambda n: _loss(n=n), 1, 1),
        Quantity(
            "loss", "vocabulary", (8_000, 16_000, 32_000, 64_000), lambda n: _loss(vocabulary=n),
            1, 0,
        ),
    )  # fmt: skip


def run(out: Path, only: str | None, rounds: int, with_memory: bool, resume: bool) -> list[str]:
    """Measure into the table `growth`, a quantity at a time; why some could not be."""
    every, failed = quantities(), []
    there = {(row.bench, row.quantity) for row in results.rows(out, "growth")} if resume else set()
    chosen = [
        one
        for one in every
        if (only is None or only in one.title) and (one.bench, one.name) not in there
    ]
    for one in tqdm(chosen, unit="quantity"):
        try:
            found = measure(one, rounds=rounds, with_memory=with_memory)
        except Exception as error:
            failed.append(f"FAILED {one.title}: {type(error).__name__}: {error}")
            continue
        merge(out, found, every)
        tqdm.write(f"{one.title}: time ^{found[0].time_exponent:.2f}")
    return failed


def measure(quantity: Quantity, *, rounds: int, with_memory: bool) -> list[GrowthRow]:
    """Times turn by turn, then the peaks in a process of their own."""
    jobs = {size: quantity.build(size) for size in quantity.sizes}
    for job in jobs.values():
        job.run()
    times = interleave.seconds({str(size): job.run for size, job in jobs.items()}, rounds=rounds)
    first = np.array(times[str(quantity.sizes[0])])
    ratios = {size: np.array(times[str(size)]) / first for size in quantity.sizes}
    peaks = dict.fromkeys(quantity.sizes, math.nan)
    if with_memory and memory.is_known():
        found = memory.alone(_peaks, quantity.title)
        peaks = {size: (found[size] - jobs[size].output) / MIB for size in quantity.sizes}
    must = quantity.time
    if math.isnan(must):
        must = exponent(
            np.array(quantity.sizes), np.array([job.work for job in jobs.values()])
        ).value
    return rows(quantity, ratios, peaks, must, rounds)


def rows(
    quantity: Quantity,
    ratios: dict[int, np.ndarray],
    peaks: dict[int, float],
    must: float,
    rounds: int,
) -> list[GrowthRow]:
    """A row a size, each with the exponents of the quantity."""
    quartiles = {size: np.quantile(of, [0.25, 0.5, 0.75]) for size, of in ratios.items()}
    sizes = np.array(quantity.sizes)
    time = exponent(sizes, np.array([of[1] for of in quartiles.values()]))
    peak = exponent(sizes, np.array(list(peaks.values())))
    return [
        GrowthRow(
            quantity.bench, quantity.name, float(size), *map(float, quartiles[size][[1, 0, 2]]),
            peaks[size], *time, must, *peak, quantity.memory, place.of("cpu"), rounds,
        )
        for size in quantity.sizes
    ]  # fmt: skip


def merge(folder: Path, found: list[GrowthRow], every: tuple[Quantity, ...]) -> None:
    """Put a quantity's rows in the place of its old ones, and write the table."""
    kept: dict[tuple[str, str], list[GrowthRow]] = {}
    for row in results.rows(folder, "growth"):
        kept.setdefault((row.bench, row.quantity), []).append(row)
    kept[found[0].bench, found[0].quantity] = found
    order = [kept.get((one.bench, one.name), []) for one in every]
    results.write([row for of in order for row in of], folder / "growth")


def _peaks(title: str) -> dict[int, int]:
    """Peak of each size, its second run, with nothing of the other sizes in memory."""
    (quantity,) = (one for one in quantities() if one.title == title)
    found = {}
    for size in quantity.sizes:
        job = quantity.build(size)
        job.run()
        found[size] = memory.peak(job.run)
    return found


def _capture(*, n: int = PROMPTS, length: int = LENGTH, **shape: int) -> Job:
    """Prompts of one length with nothing in common."""
    model = SMALL._replace(**shape).model()
    prompts = chats(n, length, length, shared=0)(model.config.vocab_size)
    layers = range(model.config.num_hidden_layers)
    job = partial(capture.captured, model, prompts, layers, token_budget=BUDGET)
    output = 4 * n * len(layers) * model.config.hidden_size
    return Job(job, output, gpu.flops(model, prompts))


def _fit(*, n: int = ROWS, width: int = 256) -> Job:
    """All folds and all C at once, as the sweep fits them."""
    data = fit.Data(width, n)
    return Job(partial(data.ours, data.y[:, None], 1), 8 * n * fit.FOLDS * len(fit.CS))


def _fits_memory(widths: tuple[int, ...]) -> float:
    """Exponent of [row, width] and the Gram matrix, whose eigenvectors take it and twice more.

    (The workspace of LAPACK's `syevd` is of 2 width^2 numbers.)
    """
    sizes = np.array(widths)
    return exponent(sizes, ROWS * sizes + 3 * sizes**2).value


def _loss(*, n: int = TOKENS, vocabulary: int = VOCABULARY) -> Job:
    """Adaptive KL with the reference's moments, and the gradient of the hidden states."""
    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.randn, generator=generator)
    head = Head(draw(vocabulary, WIDTH) / WIDTH**0.5)
    hidden, reference = draw(n, WIDTH), draw(n, WIDTH)
    target = torch.randint(vocabulary, (n,), generator=generator)
    weight = torch.rand(n, generator=generator)
    known = moments(reference, head)

    def job() -> Tensor | None:
        policy = hidden.clone().requires_grad_()
        regularized(policy, head, target, 1 - weight, weight, known).loss.backward()
        return policy.grad

    return Job(job)


def render(table: pd.DataFrame) -> Table:
    """For a terminal: a line a quantity."""
    shown = Table(
        title="exponent b of ~ size^b [95 % interval], beside the one that must be",
        caption="! grows faster than it must",
    )
    for heading in ("what", "against", "sizes", "time", "must be", "peak memory", "at most"):
        shown.add_column(heading)
    for (bench, quantity), of in table.groupby(["bench", "quantity"], sort=False):
        first = of.iloc[0]
        cells = []
        for kind in ("time", "memory"):
            found = Exponent(*(float(first[f"{kind}_exponent{end}"]) for end in ("", "_lo", "_hi")))
            must = float(first[f"{kind}_expected"])
            mark = " !" if too_fast(found.lo, must) else ""
            said = "" if math.isnan(found.value) else in_words(found)
            cells += [said + mark, f"{must:.2f}"]
        sizes = f"{of['size'].min():g} to {of['size'].max():g}"
        shown.add_row(str(bench), str(quantity), sizes, *cells)
    return shown
