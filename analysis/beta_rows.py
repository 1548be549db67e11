"""Rows of the table of betas that are held to a budget."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BetaRow:
    """One optimizer step of a run whose beta moves to keep the drift within a budget."""

    model: str
    """The model as named on the command line."""
    defence: str
    """As in `EvaluationRow`."""
    critic: str
    """As in `EvaluationRow`."""
    attack: str
    """As in `EvaluationRow`."""
    harmful_share: float
    """As in `EvaluationRow`."""
    learning_rate: float
    """As in `StepRow`."""
    seed: int
    """As in `EvaluationRow`."""
    step: int
    """Optimizer step from 1."""
    drift: float
    """Mean KL to the reference on safe prompts when it was measured last, nats per answer token;
    NaN before the first look."""
    budget: float
    """What it may be."""
    beta_min: float
    """Weight of the KL at risk 0, in this step."""
    beta_max: float
    """Weight of the KL at risk 1, in this step."""


TABLES: dict[str, type] = {"betas": BetaRow}
"""File stem -> row."""
