"""Does a frozen probe still read a model that is being trained?

The activation critic reads the reference, which stands still. To read the model in training would
save nothing and cost trust, if its activations move away from what the probe was fitted on: a few
labelled prompts, set aside as a canary, are read every so many steps, and tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from analysis.results import DriftRow
from probes import metrics
from probes.blocks import evaluating
from probes.errors import InputError
from probes.prompts import PromptSet
from regularize.measures import Arm
from regularize.model import base_of

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from probes.frozen import FrozenProbe

ENTRY = "canary"
"""Key of what is found in the trainer's log, which checkpoints hold."""


class Canary(TrainerCallback):
    """AUROC of a frozen probe on the model in training, every so many steps.

    What it finds stands in the trainer's log, so that a run that is resumed goes on with it.
    """

    def __init__(
        self,
        probe: FrozenProbe,
        prompts: PromptSet,
        tokenizer: PreTrainedTokenizerBase,
        *,
        every: int,
    ) -> None:
        """Say what is read, and when.

        Args:
            probe: Fitted on the reference.
            prompts: The canary: harmful and harmless, none of the probe's or of the training data.
            tokenizer: The model's.
            every: Optimizer steps between two looks; there is one before the first step and one
                after the last, too.

        Raises:
            InputError: The canary is of one class.
        """
        if len(set(prompts.labels.tolist())) < 2:
            raise InputError(f"the canary {prompts.name} holds one class only, and AUROC needs two")
        self.probe, self.prompts, self.tokenizer, self.every = probe, prompts, tokenizer, every

    def on_train_begin(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        model: Any = None,
        **_: Any,
    ) -> None:
        """The reference: nothing is trained yet."""
        if state.global_step == 0:
            self._look(model, state)

    def on_step_end(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        model: Any = None,
        **_: Any,
    ) -> None:
        """Every so many steps, and at the last."""
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            self._look(model, state)

    def _look(self, model: nn.Module, state: TrainerState) -> None:
        if not state.is_world_process_zero:
            return
        base = base_of(model)
        with evaluating(base):
            logits = self.probe.logits(
                base, self.tokenizer, self.prompts.messages, allow_mismatch=True
            )
        found = looked(self.probe, self.prompts, logits.cpu().numpy().astype(np.float64))
        entry: dict[str, Any] = {ENTRY: found, "step": state.global_step}
        state.log_history.append(entry)


def looked(
    probe: FrozenProbe, prompts: PromptSet, logits: np.ndarray[Any, np.dtype[np.float64]]
) -> dict[str, float]:
    """What one look finds: the columns of a `DriftRow` that are measured."""
    auroc = metrics.auroc_interval(prompts.labels, logits, prompts.groups)
    threshold = probe.config.threshold
    flagged = metrics.operating_point(
        prompts.labels, logits, float("nan") if threshold is None else threshold
    )
    return {
        "auroc": auroc.estimate,
        "auroc_lo": auroc.lo,
        "auroc_hi": auroc.hi,
        "tpr": flagged.tpr.estimate,
        "fpr": flagged.fpr.estimate,
        "n": len(prompts),
    }


def rows(log: Sequence[dict[str, Any]], about: Arm) -> list[DriftRow]:
    """The rows of a run, from its trainer's log."""
    return [
        DriftRow(**asdict(about), step=int(entry["step"]), **entry[ENTRY])
        for entry in log
        if ENTRY in entry
    ]


def said(rows: Sequence[DriftRow]) -> str:
    """What became of the probe, in a line."""
    first, last, worst = rows[0], rows[-1], min(rows, key=lambda row: row.auroc)
    return (
        f"the frozen probe on the model in training, AUROC on {first.n} prompts: "
        f"{_interval(first)} on the reference, {_interval(last)} after step {last.step}"
        + ("" if worst in (first, last) else f", {_interval(worst)} at worst (step {worst.step})")
    )


def _interval(row: DriftRow) -> str:
    return f"{row.auroc:.3f} [{row.auroc_lo:.3f}, {row.auroc_hi:.3f}]"
