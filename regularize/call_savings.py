"""What a probe, a judge and both together make of labelled rows, at a range of bands."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64
from rich.console import Console

from analysis.results import JudgeCallRow
from probes import metrics, models
from probes.errors import InputError
from regularize import data, stacking, testbeds
from regularize.critics.probe import ProbeCritic
from regularize.data import Example
from regularize.judge_calls import DATA, JUDGES, PROBES

if TYPE_CHECKING:
    from regularize.judge_calls import JudgeCallsConfig


class Opinions(NamedTuple):
    """What probe and judge say of some labelled rows."""

    labels: Int64[np.ndarray, "row"]
    """1 = harmful."""
    p: Float64[np.ndarray, "row"]
    """The probe's probability."""
    s: Float64[np.ndarray, "row"]
    """The judge's risk."""

    def of(self, which: Bool[np.ndarray, "row"]) -> Opinions:
        """Some of the rows."""
        return Opinions(*(part[which] for part in self))


class Found(NamedTuple):
    """One critic on the rows."""

    critic: str
    """As in `JudgeCallRow`."""
    lo: float
    risk: Float64[np.ndarray, "row"]
    calls: int
    labelled_calls: int


def rows(config: JudgeCallsConfig, console: Console) -> Iterator[JudgeCallRow]:
    """All critics on all data.

    Raises:
        InputError: Something given cannot be used.
    """
    probes = _probes(config)
    chat = models.load(config.model, dtype=config.dtype, device_map=config.device_map)
    for spec in config.data or DATA:
        for seed in config.seeds:
            examples = data.load(spec, seed=seed)
            labels = _labels(examples)
            aside = set_aside(examples, config.n_labelled, seed)
            console.print(
                f"{spec}, seed {seed}: {int((~aside).sum())} rows, and {int(aside.sum())} set aside"
            )
            judged = {
                name: replace(config.judge, model=name).assess(examples, chat).s
                for name in config.judges or JUDGES
            }
            for probe, critic in probes.items():
                p = critic.assess(examples, chat).s
                for judge, s in judged.items():
                    every = Opinions(labels, p, s)
                    shown, labelled = every.of(~aside), every.of(aside)
                    of = {"model": config.model, "data": spec, "probe": probe, "judge": judge}
                    for one in critics(shown, labelled, config.los, seed=seed):
                        yield _row(one, shown.labels, config.threshold, seed=seed, **of)


def critics(
    shown: Opinions, labelled: Opinions, los: Sequence[float], *, seed: int
) -> Iterator[Found]:
    """The probe, the judge, and at each band the hybrid, the stacked hybrid and the control.

    Args:
        shown: Of the rows that critics are judged on.
        labelled: Of those by which probe and judge are weighed. Where those in a band are of one
            class there is no stacked critic.
        los: Lower ends of the bands.
        seed: Of the control.
    """
    n = len(shown.p)
    rng = np.random.default_rng(seed)
    order = rng.permutation(n)
    nan = float("nan")
    yield Found("probe", nan, shown.p, 0, 0)
    yield Found("judge", nan, shown.s, n, 0)
    for lo in los:
        asked = stacking.unsure(shown.p, lo, 1 - lo)
        calls = int(asked.sum())
        yield Found("hybrid", lo, stacking.combined(shown.p, shown.s[asked], asked, None), calls, 0)
        known = labelled.of(stacking.unsure(labelled.p, lo, 1 - lo))
        if len(np.unique(known.labels)) == 2:
            weights = stacking.fit(*known)
            risk = stacking.combined(shown.p, shown.s[asked], asked, weights)
            yield Found("stacked", lo, risk, calls, len(known.p))
        drawn = np.zeros(n, dtype=bool)
        drawn[order[:calls]] = True
        yield Found("random", lo, stacking.combined(shown.p, shown.s[drawn], drawn, None), calls, 0)


def set_aside(examples: Sequence[Example], n: int, seed: int) -> Bool[np.ndarray, "row"]:
    """Which rows are set aside: `n` drawn by the seed, and all that ask just the same.

    Raises:
        InputError: No others are left.
    """
    texts = [one.text for one in examples]
    drawn = {texts[i] for i in np.random.default_rng(seed).permutation(len(texts))[:n]}
    aside = np.array([text in drawn for text in texts], dtype=bool)
    if aside.all():
        raise InputError(
            f"--n-labelled {n}: of {len(texts)} rows none are left to be judged on; give fewer, or "
            "more rows"
        )
    return aside


def _labels(examples: Sequence[Example]) -> Int64[np.ndarray, "row"]:
    for one in examples:
        if one.label is None:
            raise InputError(f"{one.where}: the row has no label; label all 1 (harmful) or 0")
    return np.array([one.label for one in examples], dtype=np.int64)


def _probes(config: JudgeCallsConfig) -> dict[str, ProbeCritic]:
    """The probes by name; those of the testbed that are missing are swept."""
    named = config.probes or PROBES
    swept = {}
    if any(config.model in testbed.models for testbed in testbeds.known().values()):
        testbed = testbeds.of(config.model)
        swept = dict(testbed.sweeps(config.model, config.out, config.sweeps))
        testbed.prepare(config.out)
    for name in named:
        if name in swept:
            swept[name].make()
        if name not in swept and not Path(name).exists() and "/" not in name:
            raise InputError(
                f"--probes {name}: neither a folder nor one of {config.model}'s: "
                f"{', '.join(swept) or 'it has none of its own'}"
            )
    return {name: ProbeCritic(str(swept[name].probe if name in swept else name)) for name in named}


def _row(
    one: Found, labels: Int64[np.ndarray, "row"], threshold: float, *, seed: int, **of: str
) -> JudgeCallRow:
    flagged = one.risk > threshold
    with warnings.catch_warnings():  # NaN in the table says as much
        warnings.simplefilter("ignore", RuntimeWarning)
        groups = np.arange(len(labels))
        auroc = metrics.auroc_interval(labels, one.risk, groups, seed=seed)
        brier, ece = metrics.brier(labels, one.risk), metrics.ece(labels, one.risk)
    recall, fpr = (
        metrics.share(of_class) if len(of_class) else metrics.UNDEFINED
        for of_class in (flagged[labels == 1], flagged[labels == 0])
    )
    return JudgeCallRow(
        **of,
        critic=one.critic,
        lo=one.lo,
        judged=one.calls / len(labels),
        calls=one.calls,
        labelled_calls=one.labelled_calls,
        n_pos=int(labels.sum()),
        n_neg=int((1 - labels).sum()),
        threshold=threshold,
        recall=recall.estimate,
        recall_lo=recall.lo,
        recall_hi=recall.hi,
        fpr=fpr.estimate,
        fpr_lo=fpr.lo,
        fpr_hi=fpr.hi,
        auroc=float(auroc.estimate),
        auroc_lo=float(auroc.lo),
        auroc_hi=float(auroc.hi),
        brier=brier,
        ece=ece,
        seed=seed,
    )
