"""Rows of the table that says what a judge adds to a probe, and for how many calls."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class JudgeCallRow:
    """One critic on one labelled set, and how many of its rows a judge had to read."""

    model: str
    """The model that the probe reads, as named on the command line."""
    data: str
    """The labelled training rows, as named on the command line."""
    probe: str
    """The frozen probe: a name of the testbed's, or its folder."""
    judge: str
    """The judge."""
    critic: str
    """probe (no row is judged), judge (every row is, and the probe not asked), hybrid (the judge
    decides about the rows in a band), stacked (probe and judge are weighed in it), random (the
    judge decides about as many rows as in the band, drawn at random: the control)."""
    lo: float
    """Least probability by the probe in the band; the highest is 1 - lo. NaN where there is no
    band."""
    judged: float
    """Share of the rows that the judge read, 0 to 1."""
    calls: int
    """Rows that the judge read."""
    labelled_calls: int
    """Labelled rows outside of these data that it read besides, to be weighed."""
    n_pos: int
    """Harmful rows."""
    n_neg: int
    """Harmless rows."""
    threshold: float
    """Risk above which a row is flagged, fixed before."""
    recall: float
    """Share of the harmful rows that are flagged; NaN where there are none."""
    recall_lo: float
    """Lower end of the exact (Clopper-Pearson) 95 % interval."""
    recall_hi: float
    """Upper end of it."""
    fpr: float
    """Share of the harmless rows that are flagged; NaN where there are none."""
    fpr_lo: float
    """Lower end of the exact (Clopper-Pearson) 95 % interval."""
    fpr_hi: float
    """Upper end of it."""
    auroc: float
    """Of the risk, 0 to 1; NaN where it is undefined."""
    auroc_lo: float
    """Lower end of its 95 % interval."""
    auroc_hi: float
    """Upper end of it."""
    brier: float
    """Mean squared error of the risk as a probability."""
    ece: float
    """Calibration error over ten bins of equal mass."""
    seed: int
    """Seed of the data, of what is set aside as labelled rows, and of the control."""


TABLES: dict[str, type] = {"judge_calls": JudgeCallRow}
"""File stem -> row."""
