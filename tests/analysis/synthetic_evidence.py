"""Tables that stand beside a sweep's scores, made of numbers that are known."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import expit

from analysis.results import DriftRow, OperatingRow, ReliabilityRow
from tests.analysis.synthetic import HELD_OUT, MODELS, wilson

TRAIN = "miniature:train"


def share(of: float, n: int) -> tuple[float, float, float]:
    """A share of n prompts with its interval."""
    return (round(of * n) / n, *wilson(round(of * n), n))


def operating(models=MODELS, held_out=HELD_OUT, n=200) -> list[OperatingRow]:
    """A threshold that is good in-distribution and worse on each further set; words flag few.

    The rate of one in a thousand has no threshold.
    """
    rows = []
    for model in models:
        for readout, layer, best in (("layer", 3, 0.98), ("tfidf-word", -1, 0.3)):
            for fpr in (0.01, 0.001):
                for rank, name in enumerate((TRAIN, *held_out)):
                    known = fpr == 0.01
                    tpr, wrong = best - 0.05 * rank, 0.01 + 0.02 * rank
                    shares = [share(of, n) if known else (math.nan,) * 3 for of in (tpr, wrong)]
                    rows.append(
                        OperatingRow(
                            model, readout, layer, TRAIN, name, rank > 0, fpr,
                            1.5 if known else math.nan, 300, n, n, *shares[0], *shares[1],
                        )
                    )  # fmt: skip
    return rows


def reliability(models=MODELS, held_out=HELD_OUT, n=40) -> list[ReliabilityRow]:
    """Log-odds twice too large, but for Platt's map."""
    rows = []
    for model in models:
        for calibration, slope in (("none", 2.0), ("platt", 1.0), ("isotonic", 1.0)):
            for rank, name in enumerate((TRAIN, *held_out)):
                for bin, t in enumerate(np.linspace(-3, 3, 10)):
                    rows.append(
                        ReliabilityRow(
                            model, "layer", 3, TRAIN, name, rank > 0, calibration, bin, n,
                            float(expit(slope * t)), *share(float(expit(t)), n),
                        )
                    )  # fmt: skip
    return rows


def drift(models=("m",), steps=(0, 20, 40)) -> list[DriftRow]:
    """AUROC that hardly falls under SFT, while what is flagged does; both stay under a defence."""
    rows = []
    for model in models:
        for defence, falls in (("none", 1.0), ("adaptive-kl", 0.1)):
            for i, step in enumerate(steps):
                auroc, tpr = 1 - 0.002 * i * falls, 1 - 0.25 * i * falls
                rows.append(
                    DriftRow(
                        model, defence, "probe", "mixed", 0.09, 1e-3, 0, step, auroc, auroc - 0.02,
                        min(auroc + 0.01, 1.0), tpr, 0.01, 400,
                    )
                )  # fmt: skip
    return rows
