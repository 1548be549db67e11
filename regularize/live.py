"""Risks that change in training: a critic looks at the model every so many steps.

What it finds stands in the trainer's log, so that a run that is resumed goes on with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from regularize.critics import Risks

ENTRY = "reassessed"
"""Key of a look in the trainer's log, which checkpoints hold."""


class Reassessing(TrainerCallback):
    """Looks every so many steps, but for the last, after which nothing is learnt."""

    def __init__(self, every: int, look: Callable[[], Risks | None]) -> None:
        """Say when, and how.

        Args:
            every: Optimizer steps between two looks.
            look: Changes the risks, and gives them in the one process that has found them.
        """
        self._every, self._look = every, look

    def on_step_end(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **_: Any,
    ) -> None:
        """Before the step's checkpoint is written, so that it holds the new risks."""
        if state.global_step % self._every or state.global_step >= state.max_steps:
            return
        found = self._look()
        if found is not None:
            entry: dict[str, Any] = {ENTRY: looked(found), "step": state.global_step}
            state.log_history.append(entry)


def looked(risks: Risks) -> dict[str, float]:
    """What is logged of a look: mean risk, share of flagged rows, and the critic's own counts."""
    flagged = {} if risks.flagged is None else {"flagged": float(np.mean(risks.flagged))}
    return {"risk": float(np.mean(risks.s)), **flagged, **(risks.tally or {})}


def looks_of(log: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """What was logged of each look, with its step."""
    return [{"step": entry["step"], **entry[ENTRY]} for entry in log if ENTRY in entry]


def said(log: Sequence[Mapping[str, Any]]) -> str:
    """In one line, how the mean risk has gone; empty where nobody has looked."""
    looks = looks_of(log)
    means = ", ".join(f"{look['risk']:.3f} at step {look['step']}" for look in looks)
    return f"mean risk s as the model in training answers: {means}" if looks else ""
