"""A control without any KL: what is risky is left out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from regularize.defences import Defence, share

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Bool

    from regularize.critics import Risks


@dataclass(frozen=True)
class Filter(Defence):
    """L = NLL on the examples that are not flagged."""

    threshold: float | None = None
    """Risk above which an example is dropped. Default: the critic's own threshold, else .5."""

    def check(self) -> None:
        """Raise InputError for options that mean nothing."""
        if self.threshold is not None:
            share("threshold", self.threshold)

    def keeps(self, risks: Risks) -> Bool[np.ndarray, "example"]:
        """Those at or below the threshold."""
        if self.threshold is None and risks.flagged is not None:
            return ~risks.flagged
        return risks.s <= (0.5 if self.threshold is None else self.threshold)
