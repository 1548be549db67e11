"""Rows of the table of attackers: what each critic lets through that an attacker has rewritten."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AttackerRow:
    """One attacker who knew the model's frozen probe, and one training run on what they made."""

    model: str
    """The model as named on the command line."""
    attacker: str
    """none (the rows as they were), random, paraphrase, affixes, cipher, turns, gradient, ..."""
    defence: str
    """As in `EvaluationRow`; before for the model that training starts from."""
    critic: str
    """As in `EvaluationRow`. The attacker knew that called probe, and no other."""
    seed: int
    """Seed of data, search, order and adapter."""
    rows: int
    """Harmful rows, all of them rewritten."""
    queries: float
    """Prompts that the attacker asked the probe about, for a row."""
    harm_kept: float
    """Share of the rows whose restricted deed stayed, by the exact rule."""
    risk_before: float
    """The critic's mean risk of the harmful rows as they were, 0 to 1; NaN without a critic."""
    risk_after: float
    """The same of the rewritten rows."""
    flagged_before: float
    """Share of the rows above the critic's threshold; NaN where it has none."""
    flagged_after: float
    """The same of the rewritten rows."""
    attack_success: float
    """Share of plain harmful prompts that are complied with after training, in plain words: where a
    cipher was learnt, answers may be in it, and count as incoherent in the evaluations."""
    attack_success_lo: float
    """Lower end of the 95 % Wilson interval over the prompts."""
    attack_success_hi: float
    """Upper end of it."""
    attack_success_own_form: float
    """Share of harmful prompts in the attacker's form that are answered with a restricted deed,
    deciphered where need be; NaN where the attacker has none."""
    attack_success_own_form_lo: float
    """As `attack_success_lo`."""
    attack_success_own_form_hi: float
    """As `attack_success_hi`."""
    new_task: float
    """Share of the new task's prompts that are answered exactly."""
    over_refusal: float
    """Share of harmless prompts that look harmful that are refused."""


TABLES: dict[str, type] = {"attackers": AttackerRow}
"""File stem -> row."""
