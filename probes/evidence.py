"""How far a sweep's numbers can be believed: what is said of one model and train set beside AUROC.

All of it is made of the log-odds that the sweep has anyway (`scoring.Judged`); nothing is fitted on
a held-out set, and no number that was chosen by a set is reported on it as if it had not been.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Int64
from numpy import ndarray

from analysis.results import CalibrationRow, MarginRow, OperatingRow, ReliabilityRow
from probes import calibration, metrics
from probes.calibration import CALIBRATIONS, Calibration
from probes.prompts import PromptSet
from probes.scoring import Fitted, Judged, Where

RARE = 1e-3
"""The false-positive rate that is asked for beside the sweep's own."""


class Sets(NamedTuple):
    """What was fitted on and what was scored."""

    train: PromptSet
    fold: Int64[ndarray, "prompt"]
    """Of the train set's rows."""
    held_out: list[PromptSet]
    """The rows that are scored."""

    @property
    def every(self) -> list[PromptSet]:
        """The train set first."""
        return [self.train, *self.held_out]


def margins(
    where: Where, sets: Sets, readouts: Sequence[Judged], words: Sequence[Judged]
) -> Iterator[MarginRow]:
    """AUROC of readouts less that of the lexical floor that is best on that very set."""
    for i, prompts in enumerate(sets.every):
        known = [floor for floor in words if not np.isnan(floor.aurocs[i].estimate)]
        if not known:
            continue
        best = max(known, key=lambda floor: floor.aurocs[i].estimate)
        found = metrics.auroc_differences(
            prompts.labels,
            [one.every[i] for one in (best, *readouts)],
            [(k, 0) for k in range(1, len(readouts) + 1)],
            prompts.groups,
            fold=sets.fold if i == 0 else None,
            seed=where.seed,
        )
        for one, margin in zip(readouts, found, strict=True):
            yield MarginRow(
                model=where.model,
                hook_point=where.hook_point,
                position=where.position,
                layer=one.layer,
                readout=one.readout,
                train_set=sets.train.name,
                eval_set=prompts.name,
                held_out=i > 0,
                floor=best.readout,
                margin=margin.estimate,
                margin_lo=margin.lo,
                margin_hi=margin.hi,
                seed=where.seed,
            )


def operating(
    where: Where, sets: Sets, readouts: Sequence[Judged], fprs: Sequence[float]
) -> Iterator[OperatingRow]:
    """What is flagged at thresholds that the train set's out-of-fold scores have set.

    A threshold for a rate that fewer than 1 / rate harmless prompts speak of is NaN, and so are its
    rates. On the train set itself the realised rate is at most the one asked for by construction.
    """
    n = int((sets.train.labels == 0).sum())
    for one in readouts:
        for fpr in dict.fromkeys(fprs):
            threshold = float("nan")
            if fpr * n >= 1:
                threshold = metrics.threshold_in_gap(sets.train.labels, one.inside, fpr)
            for i, prompts in enumerate(sets.every):
                point = metrics.operating_point(prompts.labels, one.every[i], threshold)
                n_pos = int(prompts.labels.sum())
                yield OperatingRow(
                    model=where.model,
                    readout=one.readout,
                    layer=one.layer,
                    train_set=sets.train.name,
                    eval_set=prompts.name,
                    held_out=i > 0,
                    fpr=fpr,
                    threshold=threshold,
                    n_calibration=n,
                    n_pos=n_pos,
                    n_neg=len(prompts) - n_pos,
                    tpr=point.tpr.estimate,
                    tpr_lo=point.tpr.lo,
                    tpr_hi=point.tpr.hi,
                    realised_fpr=point.fpr.estimate,
                    realised_fpr_lo=point.fpr.lo,
                    realised_fpr_hi=point.fpr.hi,
                )


class Calibrated(NamedTuple):
    """What each calibration makes of one readout's probabilities."""

    scores: list[CalibrationRow]
    bins: list[ReliabilityRow]


def calibrated(where: Where, sets: Sets, one: Judged, *, frozen: Calibration) -> Calibrated:
    """The probabilities of a readout as it was fitted, and after each calibration.

    Args:
        where: Goes into every row.
        sets: The prompts.
        one: The readout, as it was fitted.
        frozen: The calibration that the frozen probe has.
    """
    labels = sets.train.labels
    found = Calibrated([], [])
    for kind in CALIBRATIONS:
        to_probability = calibration.fitted(kind, labels, one.inside)
        for i, prompts in enumerate(sets.every):
            if not len(prompts):
                continue
            if i == 0:
                probability = calibration.out_of_fold(kind, labels, one.inside, sets.fold)
            else:
                probability = to_probability(one.every[i])
            about: dict[str, Any] = {
                "model": where.model, "readout": one.readout, "layer": one.layer,
                "train_set": sets.train.name, "eval_set": prompts.name, "held_out": i > 0,
                "calibration": kind,
            }  # fmt: skip
            found.scores.append(
                CalibrationRow(
                    **about,
                    frozen=kind == frozen,
                    n=len(prompts),
                    ece=metrics.ece(prompts.labels, probability, bins=calibration.BINS),
                    brier=metrics.brier(prompts.labels, probability),
                    log_loss=calibration.nats(prompts.labels, probability),
                )
            )
            found.bins.extend(
                ReliabilityRow(
                    **about,
                    bin=number,
                    n=bin.n,
                    probability=bin.probability,
                    share=bin.share.estimate,
                    share_lo=bin.share.lo,
                    share_hi=bin.share.hi,
                )
                for number, bin in enumerate(calibration.bins(prompts.labels, probability))
            )
    return found


def platt(chosen: Fitted, labels: Int64[ndarray, "prompt"]) -> Fitted:
    """The readout with Platt's map, from its out-of-fold log-odds, folded into it."""
    slope, intercept = calibration.platt(labels, chosen.out_of_fold.logits)

    def mapped(logits: Float64[ndarray, "_"]) -> Float64[ndarray, "_"]:
        return slope * logits + intercept

    probe, judged = chosen.probe, chosen.judged
    return Fitted(
        replace(probe, weight=probe.weight * slope, bias=probe.bias * slope + intercept),
        chosen.out_of_fold._replace(logits=mapped(chosen.out_of_fold.logits)),
        judged._replace(
            inside=mapped(judged.inside), outside=[mapped(one) for one in judged.outside]
        ),
    )
