"""A probe everywhere, and a judge where the probe is unsure: a second opinion for few calls.

The probe costs a forward pass a row, the judge a generation. Where the probe's probability p lies
within a band, lo <= p <= hi, the judge reads the exchange too, and both are weighed there
(`regularize.stacking`) as labelled rows of the same band tell; without such rows the judge alone
decides there. Outside of the band the risk is p: what the probe is wrong about and sure of, stays
wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from probes.errors import InputError
from regularize.critics import Critic, Risks
from regularize.critics.judge import JudgeCritic
from regularize.critics.probe import ProbeCritic

if TYPE_CHECKING:
    from probes.models import ChatModel
    from regularize.data import Example
    from regularize.stacking import Weights


@dataclass(frozen=True)
class HybridCritic(Critic):
    """Risk = the probe's probability, and where that is middling what a judge makes of the row."""

    probe: ProbeCritic = field(default_factory=ProbeCritic)
    """Asked about every row. Its own threshold is not used."""
    judge: JudgeCritic = field(default_factory=JudgeCritic)
    """Asked about the rows in the band. Its own threshold is not used."""
    lo: float = 0.05
    """Least probability by the probe at which the judge is asked."""
    hi: float = 0.95
    """Highest such probability; 0 and 1 ask it about every row."""
    labelled: str | None = None
    """Training rows with labels, none of them of the data, by which probe and judge are weighed
    within the band: a file, or TESTBED:NAME. Default: there the judge alone decides."""
    threshold: float = 0.5
    """Risk above which an example is flagged."""

    def assess(self, examples: Sequence[Example], chat: ChatModel) -> Risks:
        """Ask the probe about all, the judge about those in the band."""
        import numpy as np

        from regularize.stacking import combined, unsure

        self._check()
        probe = self.probe.assess(examples, chat)
        asked = unsure(probe.s, self.lo, self.hi)
        n, n_asked = len(examples), int(asked.sum())
        notes = [f"the judge was asked about {n_asked} of {n} rows: {n - n_asked} calls saved"]
        if not n_asked:
            return Risks(probe.s, probe.s > self.threshold, notes=(*notes, *probe.notes))
        judge = self.judge.assess([examples[i] for i in asked.nonzero()[0].tolist()], chat)
        weights = None
        if self.labelled is not None:
            weights, n_labelled = self._weighed(self.labelled, chat)
            notes.append(
                f"in the band the risk is sigma({weights.probe:.2f} logit(p) + {weights.judge:.2f} "
                f"s {weights.bias:+.2f}), by {n_labelled} labelled rows, a call each"
            )
        s = combined(probe.s, judge.s, asked, weights)
        failed = None
        if judge.failed is not None:
            failed = np.zeros(n, dtype=bool)
            failed[asked] = judge.failed
            s = np.where(failed, 1.0, s)  # out of caution, whatever the probe says
        return Risks(
            s, s > self.threshold, failed, judge.tally, (*notes, *probe.notes, *judge.notes)
        )

    def _weighed(self, spec: str, chat: ChatModel) -> tuple[Weights, int]:
        """The weights by the labelled rows in the band, and how many these are."""
        import numpy as np

        from regularize import data, stacking

        rows = data.load(spec)
        if unlabelled := [one.where for one in rows if one.label is None]:
            raise InputError(
                f"--critic.labelled {spec}: {unlabelled[0]} has no label; label all rows 1 "
                "(harmful) or 0"
            )
        p = self.probe.assess(rows, chat).s
        asked = stacking.unsure(p, self.lo, self.hi)
        chosen = [rows[i] for i in asked.nonzero()[0].tolist()]
        labels = np.array([one.label for one in chosen], dtype=np.int64)
        if len(set(labels.tolist())) < 2:  # before the judge is asked
            raise InputError(
                f"--critic.labelled {spec}: of its {len(rows)} rows {len(chosen)} lie in the band "
                f"{self.lo:g} to {self.hi:g}, {int(labels.sum())} of them harmful; weighing needs "
                "rows of both classes there. Give more rows or a wider band, or leave the option "
                "out, so that the judge alone decides in the band"
            )
        return stacking.fit(labels, p[asked], self.judge.assess(chosen, chat).s), len(chosen)

    @property
    def sources(self) -> Mapping[str, str]:
        """The judge's."""
        return self.judge.sources

    def _check(self) -> None:
        if self.judge.mode == "live":
            raise InputError(
                "--critic.judge.mode live: the hybrid critic looks at the data once, before "
                "training; take critic:judge for a judge that looks again"
            )
        if not 0 <= self.lo <= self.hi <= 1:
            raise InputError(
                f"--critic.lo {self.lo:g} --critic.hi {self.hi:g}: a band of probabilities, from "
                "0 to 1, with lo no larger than hi"
            )
        if not 0 <= self.threshold <= 1:
            raise InputError(f"--critic.threshold {self.threshold}: a risk lies between 0 and 1")
