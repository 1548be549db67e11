"""Sharded trainings, as one of several processes: `torchrun -m ... FOLDER`."""

from __future__ import annotations

import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from peft import PeftModel
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers.trainer_utils import set_seed

from probes.errors import InputError
from probes.ranks import leave
from regularize.critics.column import ColumnCritic
from regularize.defences.adaptive_kl import AdaptiveKL
from regularize.defences.none import SFT
from regularize.fine_tuning import fine_tune
from regularize.logged import LOGGED
from regularize.sharding import OPTIONS, whole_state
from regularize.train import TrainConfig
from tests.regularize.training import trained, trainer

CASES: dict[str, dict[str, Any]] = {
    "cached": {},
    "adapter-off": {"reference": "adapter-off"},
    "reverse": {"defence": AdaptiveKL(direction="reverse")},
    "none": {"defence": SFT()},
    "full": {"full": True, "args": {"learning_rate": 0.02}},
    "accumulated": {
        "defence": AdaptiveKL(granularity="batch", smoothing=0.5),
        "args": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2},
    },
    "clipped": {"args": {"max_grad_norm": 0.05}},
    "recomputed": {"args": {"gradient_checkpointing": True}},
}
"""Each step is of four rows, over all processes."""


def end_of(name: str, folder: Path, *, processes: int = 1) -> tuple[dict[str, Tensor], list[Any]]:
    """The trained parameters and what was logged; sharded if there are several processes."""
    options = dict(CASES[name])
    args = {"per_device_train_batch_size": 4 // processes, **options.pop("args", {})}
    if processes == 1 and "gradient_accumulation_steps" in args:
        args["gradient_accumulation_steps"] *= 2
    if processes > 1:
        args |= {"fsdp": True, "fsdp_config": dict(OPTIONS)}
    set_seed(0)
    one = trainer(folder / name, args=args, **options)
    one.train()
    log = [{k: float(e[k]) for k in LOGGED if k in e} for e in one.state.log_history]
    if processes == 1:
        return trained(one.model), log
    assert all(isinstance(weight, DTensor) for weight in one.model.parameters())
    return whole_state(one.model), log


def resumed(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Where a run ends, and where one does that goes on from the middle of it."""
    args = {"per_device_train_batch_size": 2, "fsdp": True, "fsdp_config": dict(OPTIONS),
            "save_strategy": "steps", "save_steps": 3}  # fmt: skip
    set_seed(0)
    first = trainer(folder / "resumed", args=args | {"optim": "adamw_torch"})
    first.train()
    kept = folder / "resumed" / "out" / "checkpoint-3"
    set_seed(1)
    again = trainer(folder / "resumed", args=args | {"optim": "adamw_torch"})
    again.train(resume_from_checkpoint=str(kept))
    return whole_state(first.model), whole_state(again.model)


def refused(folder: Path) -> dict[str, str]:
    """What is said where sharding or reference are not what they should be."""
    args = {"per_device_train_batch_size": 2, "fsdp": True, "fsdp_config": dict(OPTIONS)}
    said = {}

    def attempt(name: str, change: Any, **options: Any) -> None:
        one = trainer(folder / name, args=args, **options)
        undo = change(one)
        try:
            one.train()
            said[name] = "nothing"
        except InputError as error:
            said[name] = str(error)
        finally:
            undo()

    def leave_on(one: Any) -> Any:  # as where a wrapper hides the adapter
        off = PeftModel.disable_adapter
        PeftModel.disable_adapter = lambda self: nullcontext()  # type: ignore[method-assign]
        return lambda: setattr(PeftModel, "disable_adapter", off)

    def other_rows(one: Any) -> Any:
        at = one.reference.at
        one.reference.at = lambda batch: at(batch._replace(row=(batch.row + 1) % 12))
        return lambda: None

    def copies(one: Any) -> Any:  # what accelerate does by itself on a CPU
        from accelerate.utils import DistributedType

        one.accelerator.state.distributed_type = DistributedType.MULTI_CPU
        one.is_fsdp_enabled = False
        return lambda: None

    attempt("adapter left on", leave_on, reference="adapter-off")
    rows = [{"messages": [{"role": "user", "content": "say"},
                          {"role": "assistant", "content": f"{'abcdefghijkl'[i]} {'xyz'[i % 3]}"}],
             "risk": 0.5} for i in range(12)]  # fmt: skip
    attempt("other rows", other_rows, rows=rows)
    attempt("copies", copies)
    return said


def command(folder: Path, *, full: bool, **options: Any) -> TrainConfig:
    """A run of the command on a tiny model, the one of `tests.regularize.training`."""
    return TrainConfig(
        model=str(folder / "model"),
        data=str(folder / "rows.jsonl"),
        out=folder / f"ft-{'full' if full else 'lora'}",
        critic=ColumnCritic(),
        cache=folder / "cache",
        epochs=1,
        batch_size=2,
        learning_rate=1e-2,
        full=full,
        **options,
    )


def main(folder: Path) -> None:
    """Train all cases; the first process writes where they ended."""
    processes, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    for name in CASES:
        end, log = end_of(name, folder, processes=processes)
        if rank == 0:
            save_file(end, folder / f"{name}.safetensors", {"log": json.dumps(log)})
    for full in (False, True):
        fine_tune(command(folder, full=full, fsdp=True))
    ends = resumed(folder)
    said = refused(folder)
    if rank == 0:
        for name, end in zip(("undisturbed", "resumed"), ends, strict=True):
            save_file(end, folder / f"{name}.safetensors")
        (folder / "refused.json").write_text(json.dumps(said))
    (folder / f"rank-{rank}").touch()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    leave(0)
