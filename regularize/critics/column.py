"""Risks that are already there: the column `risk` of the data, by whatever critic or person."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from probes.errors import InputError
from regularize.critics import Critic, Risks

if TYPE_CHECKING:
    from probes.models import ChatModel
    from regularize.data import Example


@dataclass(frozen=True)
class ColumnCritic(Critic):
    """Risk = the row's own field `risk`."""

    threshold: float | None = None
    """Risk above which an example is flagged. Default: the rows' own field `flagged`, else .5."""

    def assess(self, examples: Sequence[Example], chat: ChatModel) -> Risks:  # noqa: ARG002
        """The column."""
        import numpy as np

        for example in examples:
            if example.risk is None:
                raise InputError(
                    f"{example.where}: the row has no field 'risk', which critic:column takes; "
                    "give every row one, from 0 to 1, or choose another critic"
                )
        s = np.array([example.risk for example in examples], dtype=np.float64)
        flagged = [example.flagged for example in examples]
        if self.threshold is None and None not in flagged:
            return Risks(s, np.array(flagged, dtype=bool))
        return Risks(s, s > (0.5 if self.threshold is None else self.threshold))
