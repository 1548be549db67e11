"""The judge critic: a language model reads each exchange (arXiv 2602.17546).

s = (score - 1) / 4 of a score from 1 to 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from probes.errors import InputError
from regularize.critics import Critic, Risks

if TYPE_CHECKING:
    from probes.models import ChatModel
    from regularize.data import Example
    from regularize.judging import Judge


@dataclass(frozen=True)
class JudgeCritic(Critic):
    """Risk = how harmful a judge finds the exchange."""

    model: str = "openai/gpt-oss-20b"
    """The judge; scripted[?recall=...&false_alarms=...] is a rule that reads the miniatures'
    language."""
    threshold: float = 0.5
    """Risk above which an example is flagged."""

    def assess(self, examples: Sequence[Example], chat: ChatModel) -> Risks:  # noqa: ARG002
        """The data's own answers are judged, once."""
        import numpy as np

        from regularize.judging import LEAST, MOST, Exchange

        exchanges = [Exchange(one.prompt, one.answer, one.where) for one in examples]
        scores = np.array(self._judge().scores(exchanges), dtype=np.float64)
        s = (scores - LEAST) / (MOST - LEAST)
        return Risks(s, s > self.threshold)

    def _judge(self) -> Judge:
        from regularize.judging.scripted import Scripted
        from regularize.specs import Spec

        spec = Spec.parse(self.model)
        if spec.name == "scripted":
            return Scripted.of(spec)
        raise InputError(f"--critic.model {self.model}: there is no such judge")
