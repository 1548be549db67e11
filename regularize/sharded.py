"""A Trainer whose model may be sharded: looked at before the first step, and gathered to be saved.

What is looked at, and why, is in `regularize.sharding`.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from regularize import sharding
from regularize.defences import Defence


class ShardedTrainer(Trainer):
    """Trains whole or sharded models alike; `sharded` tells which."""

    sharded: bool = False

    def may_shard(self, args: TrainingArguments, defence: Defence) -> None:
        """To be called before `__init__`.

        Raises:
            InputError: Sharding is asked for, and cannot be done here.
        """
        sharding.refuse(args, defence)
        self.sharded, self._looked = sharding.asked(args), False

    def create_accelerator_and_postprocess(self) -> None:
        """Shard on a CPU as well, if that is asked for."""
        super().create_accelerator_and_postprocess()
        if self.sharded:
            sharding.switch_on(self.accelerator, self.args)
            self.is_fsdp_enabled = True

    def look(self, model: nn.Module, inputs: dict[str, Tensor]) -> None:
        """Before the first loss of a sharded model.

        Raises:
            InputError: It is not sharded, or its reference is not what it should be.
        """
        if not self.sharded or self._looked:
            return
        self._looked = True
        sharding.check_sharded(model)
        self.look_at_reference(model, inputs)

    def look_at_reference(self, model: nn.Module, inputs: dict[str, Tensor]) -> None:
        """Where there is one."""

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Of a sharded model what is trained is gathered; what is frozen stays where it is."""
        if not self.sharded:
            super().save_model(output_dir, _internal_call)
            return
        state = sharding.whole_state(self.model)
        if self.args.should_save:
            self._save(output_dir, state_dict=state)

    def gathered(self) -> dict[str, Tensor] | None:
        """The trained weights of a sharded model; None of one that every process has."""
        return sharding.whole_state(self.model) if self.sharded else None

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        """Of a sharded model each process reads the file, and keeps its pieces."""
        if self.sharded:
            sharding.load_whole_state(self.model, Path(resume_from_checkpoint))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
