"""No defence: supervised fine-tuning on everything alike."""

from __future__ import annotations

from dataclasses import dataclass

from regularize.defences import Defence


@dataclass(frozen=True)
class SFT(Defence):
    """L = NLL."""

    needs_risk = False
