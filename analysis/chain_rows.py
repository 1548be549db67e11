"""Rows of the table of chains of fine-tunings."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ChainRow:
    """One measure of a model that has been fine-tuned so many times, one training after another."""

    model: str
    """The model that the chain begins with, as named on the command line."""
    defence: str
    """As in `EvaluationRow`."""
    critic: str
    """As in `EvaluationRow`."""
    attack: str
    """What each link was trained on, as in `EvaluationRow`: mixed, ..., or files."""
    harmful_share: float
    """Of the harmful rows in the data of each link, 0 to 1; NaN where it is not known."""
    learning_rate: float
    """Highest learning rate of each link."""
    seed: int
    """Of the chain: each link has data, order and an adapter of its own."""
    reference: str
    """fixed: the model that the chain begins with; moving: the one that the link begins with; none:
    nothing is held to a reference, nor read of one."""
    link: int
    """How many fine-tunings so far; 0 is the model before all."""
    metric: str
    """As in `EvaluationRow`; probe_auroc, probe_tpr and probe_fpr (the probe that was frozen on the
    first model, read on this one: shares that it flags of the harmful and of the harmless prompts);
    drift (mean KL of this model to the first on safe prompts, nats per answer token)."""
    value: float
    """A share or an AUROC (0 to 1), or nats; NaN where it is undefined."""
    lo: float
    """Lower end of the 95 % interval over the prompts; NaN of the drift."""
    hi: float
    """Upper end of it."""
    n: int
    """Prompts."""


TABLES: dict[str, type] = {"chains": ChainRow}
"""File stem -> row."""
