"""Several frozen probes, such as those of several layers, as one critic.

Each reads the reference on its own, and their log-odds are combined: the mean (the geometric mean
of the odds), the highest, or the median.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from probes.errors import InputError
from regularize.critics import Critic, Risks
from regularize.critics.probe import ProbeCritic

if TYPE_CHECKING:
    from probes.models import ChatModel
    from regularize.data import Example


@dataclass(frozen=True)
class EnsembleCritic(Critic):
    """Risk = what several frozen probes say together."""

    paths: tuple[str, ...] = ()
    """Folders or hub repositories of frozen probes of this model. `python -m probes.layer_sweep
    --also all` leaves one of each layer, in MODEL/SET/probe-LAYER."""
    combine: Literal["mean", "max", "median"] = "mean"
    """Of their log-odds. max flags what any of them flags, median what most of them do."""
    threshold: float = 0.5
    """Probability above which an example is flagged."""
    allow_mismatch: bool = False
    """Go on although a probe was fitted on other weights or another chat template."""
    token_budget: int = 4096
    """Padded tokens in one forward pass; there is a pass for each probe."""

    def assess(self, examples: Sequence[Example], chat: ChatModel) -> Risks:
        """One probe after the other."""
        import numpy as np
        from scipy.special import expit

        if not self.paths:
            raise InputError(
                "the ensemble needs frozen probes: make them with `python -m probes.layer_sweep "
                f"--models {chat.name} --train SET --also all` and give their folders with "
                "critic:ensemble --critic.paths FOLDER FOLDER ..."
            )
        if not 0 <= self.threshold <= 1:
            raise InputError(f"--critic.threshold {self.threshold}: a probability is from 0 to 1")
        one = ProbeCritic(allow_mismatch=self.allow_mismatch, token_budget=self.token_budget)
        logits = [replace(one, path=path).read(examples, chat).logits for path in self.paths]
        s = expit(getattr(np, self.combine)(logits, axis=0))
        return Risks(s, s > self.threshold)
