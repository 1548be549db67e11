"""FSDP: a model that is trained lies in pieces, one on each card, and is whole a block at a time.

    torchrun --nproc-per-node 8 -m regularize.train --fsdp ...
    accelerate launch --num-processes 8 --use_fsdp --fsdp_version 2 -m regularize.train ...

Two things go wrong with sharded models elsewhere without a word, and are looked at here before the
first step: on a CPU accelerate leaves the sharding out (`switch_on` puts it in), and where a
wrapper hides the adapter it is not switched off, so that the reference is the policy itself. FSDP2
(`torch.distributed.fsdp.fully_shard`) wraps nothing: the model stays the peft model that it was.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from probes.errors import InputError
from probes.ranks import launched_with
from regularize.defences import Defence

if TYPE_CHECKING:
    from accelerate import Accelerator  # type: ignore[import-untyped]
    from transformers import TrainingArguments

FSDP_MODEL_NAME = "pytorch_model_fsdp"
"""accelerate's name for a file of trained weights."""
OPTIONS: dict[str, Any] = {"version": 2, "reshard_after_forward": True}
"""`TrainingArguments.fsdp_config` of `--fsdp`: blocks are whole while they run, and no longer."""
START = {torch.float32: 1e-4, torch.bfloat16: 0.05}
"""Largest mean KL (nats per answer token) that rounding explains before the first step."""
BETWEEN = (
    "{} looks at the model between the steps, when under FSDP no process has all of it: leave it "
    "out, or leave out --fsdp"
)
MOVES = (0.01, 0.1, 1.0)
"""What is added to the adapter's weights, one after the other, until the policy moves."""


def asked(args: TrainingArguments) -> bool:
    """Whether the arguments, or `accelerate launch`, ask for FSDP."""
    return bool(args.fsdp) or launched_with("FSDP")


def refuse(args: TrainingArguments, defence: Defence) -> None:
    """Refuse what a sharded model cannot be given.

    Args:
        args: transformers' own.
        defence: What is done at each step, and after the last.

    Raises:
        InputError: DeepSpeed, FSDP1, one process, or what reads the model between two steps.
    """
    if args.deepspeed or launched_with("DEEPSPEED"):
        raise InputError(
            "DeepSpeed takes the head apart, which the loss reads whole: shard with FSDP instead "
            "(torchrun ... -m regularize.train --fsdp)"
        )
    if not asked(args):
        return
    given: Any = args.fsdp_config or {}  # read from its file by now
    version = given.get("version", 2) if args.fsdp else os.environ.get("FSDP_VERSION", "1")
    if int(version) != 2:
        raise InputError(
            "FSDP version 1 wraps the model so that its adapter is not switched off: give "
            "`accelerate launch` --fsdp_version 2, or TrainingArguments fsdp_config version 2"
        )
    if args.world_size < 2:
        raise InputError(
            "FSDP shares a model out over several processes, and one was started: start with "
            "`torchrun --nproc-per-node N`, or leave it out"
        )
    has_steps = type(defence).steps is not Defence.steps
    if type(defence).after is not Defence.after or (
        has_steps and getattr(defence, "kl_budget", 0) is not None
    ):
        raise InputError(BETWEEN.format(type(defence).__name__))


def switch_on(accelerator: Accelerator, args: TrainingArguments) -> None:
    """Have accelerate shard on a CPU too, where it would train copies without a word."""
    from accelerate.utils import (  # type: ignore[import-untyped]
        DistributedType,
        FullyShardedDataParallelPlugin,
    )

    state = accelerator.state
    if state.distributed_type == DistributedType.MULTI_CPU:
        given = getattr(args, "fsdp_plugin_args", None) or {"fsdp_version": 2}
        state.distributed_type = DistributedType.FSDP
        state.fsdp_plugin = FullyShardedDataParallelPlugin(**given)


def check_sharded(model: nn.Module) -> None:
    """Make sure that this process holds a part of the trained and of the frozen weights.

    Raises:
        InputError: It holds all of them: FSDP is not on.
    """
    for trained in (True, False):
        some = [one for one in model.parameters() if one.requires_grad is trained]
        here = sum(one.to_local().numel() if isinstance(one, DTensor) else one.numel()
                   for one in some)  # fmt: skip
        total = sum(one.numel() for one in some)
        if some and here >= total:
            raise InputError(
                f"FSDP was asked for, but this process holds all {total} "
                f"{'trained' if trained else 'frozen'} numbers: the model is not sharded. Start "
                "with torchrun and --fsdp, or with accelerate launch --use_fsdp --fsdp_version 2"
            )


def check_reference(
    kl: Callable[[], float], model: nn.Module, *, dtype: torch.dtype, start: bool, moves: bool
) -> None:
    """Make sure that the reference is the policy's start, and stays where the policy moves.

    Args:
        kl: Mean KL (nats per answer token) over a batch, of the model as it is, in all processes.
        model: The policy, sharded or not. Its weights are moved, and put back.
        dtype: In which it computes.
        start: Whether nothing has been learnt yet, so that the KL has to be zero.
        moves: Whether the reference is computed from the same weights.

    Raises:
        InputError: It is not.
    """
    least = START.get(dtype, 0.05)
    first = kl()
    if start and not abs(first) <= least:
        raise InputError(
            f"before the first step the policy's KL to the reference is {first:.3g} nats per "
            f"answer token, where only rounding ({least:g}) could be: the reference is of other "
            "weights or other rows. Delete the cached reference, or give --reference adapter-off"
        )
    if not moves:
        return
    for size in MOVES:
        with _moved(model, size):
            if kl() > max(least, 10 * first):
                return
    raise InputError(
        "the KL to the reference stays zero when the adapter is moved: the reference moves with "
        "the policy, for its adapter is not switched off. Give --reference cached"
    )


@contextmanager
def _moved(model: nn.Module, size: float) -> Iterator[None]:
    """The trained weights with something added, afterwards as they were."""
    trained = [one for one in model.parameters() if one.requires_grad]
    kept = [one.detach().clone() for one in trained]
    try:
        with torch.no_grad():
            for one in trained:
                one.add_(size)
        _gathered_anew(model)
        yield
    finally:
        with torch.no_grad():
            for one, before in zip(trained, kept, strict=True):
                one.copy_(before)
        _gathered_anew(model)


def _gathered_anew(model: nn.Module) -> None:
    """Drop what is whole in memory still, and would stand for the changed weights."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole(tensor: Tensor) -> Tensor:
    """A weight as every process needs it, out of its pieces.

    Raises:
        InputError: It is in pieces and trained, so that its gradient would be a piece's.
    """
    if not isinstance(tensor, DTensor):
        return tensor
    if tensor.requires_grad:
        raise InputError(
            "the head is trained and lies in pieces, where the loss needs it whole: train an "
            "adapter instead of --full, or use a newer accelerate"
        )
    return tensor.full_tensor()


def whole_state(model: Any) -> dict[str, Tensor]:
    """The trained weights of a sharded model, whole: in the first process; all must call this."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    adapter = any(not one.requires_grad for one in model.parameters())
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=adapter)
    return cast(dict[str, Tensor], get_model_state_dict(model, options=options))


def load_whole_state(model: Any, checkpoint: Path) -> None:
    """The trained weights out of a checkpoint. Not by broadcast: of a part of the weights it hangs.

    Raises:
        InputError: The checkpoint is none of a sharded run's.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    path = checkpoint / f"{FSDP_MODEL_NAME}.bin"
    if not path.is_file():
        raise InputError(
            f"{checkpoint} has no {path.name}: it was begun without FSDP. Go on without it, or "
            "delete the run's checkpoints to begin anew"
        )
    state = torch.load(path, map_location="cpu", weights_only=True)
    trained = {name for name, one in model.named_parameters() if one.requires_grad}
    if lacking := sorted(trained - state.keys()):
        raise InputError(f"{path} is of another adapter: it has no {lacking[0]}")
    set_model_state_dict(model, state, options=StateDictOptions(full_state_dict=True, strict=False))
