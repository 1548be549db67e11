"""The oracle: the data's own labels as risks. An upper bound on what a critic can do."""

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
class LabelCritic(Critic):
    """Risk 1 for rows of label 1, 0 for rows of label 0."""

    def assess(self, examples: Sequence[Example], chat: ChatModel) -> Risks:  # noqa: ARG002
        """The labels."""
        import numpy as np

        for example in examples:
            if example.label is None:
                raise InputError(
                    f"{example.where}: the row has no label, which critic:label takes for the "
                    "risk; label all rows 1 (harmful) or 0, or choose another critic"
                )
        labels = np.array([example.label for example in examples], dtype=np.float64)
        return Risks(labels, labels == 1)
