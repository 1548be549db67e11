"""Fine-tune a chat model on data that you do not trust, and keep it refusing.

A critic gives each training example a risk s. Risky examples are held to the reference policy, the
rest is learnt: L = alpha NLL + beta KL(pi_ref || pi_theta), beta = beta_min + (beta_max - beta_min)
s, alpha = 1 - beta (arXiv 2602.17546). The critic is gone after training: the model costs nothing
more to run.

Run as:
    python -m regularize.train
    python -m regularize.train --model ./my-model --data theirs.jsonl --risk-only
    python -m regularize.train --model ./my-model --data theirs.jsonl --out runs/ft
        critic:probe --critic.path runs/layer_sweep/my-model/xstest/probe
        defence:adaptive-kl --defence.beta-max 1 --defence.shape sharpened
    torchrun --nproc-per-node 8 -m regularize.train --fsdp --model ./my-model --data theirs.jsonl
    python -m regularize.train --model ./my-model --data theirs.jsonl --risk-only
        critic:judge --critic.base-url http://localhost:8000/v1
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from probes.errors import InputError
from probes.ranks import launched_with
from regularize import critics, defences
from regularize.critics import Critic
from regularize.critics.probe import ProbeCritic, probe_of
from regularize.defences import Defence, Need, check_given
from regularize.defences.adaptive_kl import AdaptiveKL
from regularize.plugins import choices

if TYPE_CHECKING:
    AnyCritic = Critic
    AnyDefence = Defence
else:  # one choice for each file of the folder
    AnyCritic = choices(critics, Critic)
    AnyDefence = choices(defences, Defence)


@dataclass(frozen=True)
class Lora:
    """The adapter (peft)."""

    r: int = 8
    """Rank."""
    alpha: int = 16
    """Scale of the adapter: alpha / r."""
    dropout: float = 0.0
    """Share of the adapter's inputs that are dropped in training."""
    targets: tuple[str, ...] = ("all-linear",)
    """Names of the linear layers that get one; all-linear is every one but the head."""


@dataclass(frozen=True)
class TrainConfig:
    """What to fine-tune, on what, and how. Saved as config.json in the run's folder."""

    model: str = "miniature/llama"
    """The aligned chat model, which is also the reference: hub id, folder, .gguf file, or
    miniature/FAMILY."""
    data: str | None = None
    """Training rows with messages, or prompt and completion: a .jsonl, .csv, .tsv or .parquet file,
    hub:org/name[:config][:split], miniature:mixed[:SHARE] or miniature:all-harmful. Default for a
    miniature: miniature:mixed, a new task with 9 % harmful rows."""
    out: Path = Path("runs/ft")
    """Folder of the run: the adapter, its card, the risks, the log, checkpoints. A run that was
    stopped goes on from its last checkpoint."""
    critic: AnyCritic = field(default_factory=ProbeCritic)
    """Where the risk s of each example comes from."""
    defence: AnyDefence = field(default_factory=AdaptiveKL)
    """How the risk decides what is learnt."""
    anchors: str | None = None
    """Prompts without labels that the model is to go on answering as it does: a file, or a prompt
    set; the reference answers them once, and they enter training with beta = 1."""
    n_anchors: int | None = 300
    """At most so many of them, drawn by the seed."""
    anchor_tokens: int = 256
    """Longest answer to an anchor (tokens)."""
    base: str | None = None
    """The model as it was before alignment, for a defence that needs it. Default for a miniature:
    its own."""
    safe: str | None = None
    """Requests answered safely, as rows like those of --data, with label 1 (harmful, refused) or 0
    (done), for a defence that needs them. Default for a miniature: miniature:safe."""
    harmful: str | None = None
    """Harmful requests complied with, none of them in --data, for a defence that needs them.
    Default for a miniature: miniature:harmful."""
    risk_only: bool = False
    """Show the risks and stop before training."""
    canary: str | None = None
    """Labelled prompts, none of the probe's or of --data, on which the critic's frozen probe is
    read from the model in training: does it still tell harm? Default for a miniature with a probe:
    miniature:test; 'none' for none."""
    canary_every: int = 25
    """Optimizer steps between two such looks."""
    lora: Lora = field(default_factory=Lora)
    """The adapter."""
    full: bool = False
    """Train all weights instead of an adapter."""
    learning_rate: float | None = None
    """Peak, after a warm-up, before a cosine to zero. Default: 2e-4, for miniatures 2e-3, for
    --full a tenth of it."""
    epochs: float = 5
    """Passes over the data."""
    batch_size: int = 16
    """Examples in one forward pass."""
    accumulate: int = 1
    """Forward passes in one optimizer step."""
    warmup: float = 0.05
    """Share of the steps in which the learning rate rises."""
    weight_decay: float = 0.0
    """AdamW's."""
    clip: float = 1.0
    """Largest gradient norm."""
    reference: Literal["auto", "cached", "adapter-off", "copy"] = "auto"
    """Where the reference policy comes from: computed once and kept on disk, by switching the
    adapter off, or by a frozen copy. auto: cached where the disk has room."""
    measure_kl: bool = False
    """Log the KL to the reference although the defence holds nothing to it."""
    cache: Path = Path("runs/cache")
    """Folder for the cached reference."""
    max_length: int | None = None
    """Longest example (tokens); an answer that goes on beyond loses its end. Default: the model's
    context."""
    save_steps: int = 100
    """Optimizer steps between two checkpoints: what a killed run loses at most."""
    report_to: tuple[str, ...] = ()
    """Trackers that transformers knows: tensorboard, wandb, ..."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    revision: str | None = None
    """Hub revision (branch, tag or commit) of the model."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the weights. auto: float32 for --full and the miniatures; else bfloat16 on a
    GPU, where all but the adapter's own weights is then computed in it, and the checkpoint's own
    elsewhere."""
    device_map: str | None = None
    """Where the weights go, as in transformers. Default: a GPU if any, each process's own."""
    fsdp: bool = False
    """Share model, gradients and optimizer out over the processes that torchrun has started (FSDP,
    version 2), instead of a copy for each. The model is put whole on each card before, for risks
    and reference; with --device-map cpu it never is, and what is computed before is so on the
    CPU: for a model larger than a card give critic:column and --reference adapter-off then."""
    chat_template: str | None = None
    """A Jinja file, or 'plain' (User: ... Assistant:), for base models that have none."""
    seed: int = 0
    """Seed of order, adapter and generated data."""

    def check(self) -> None:
        """Raise InputError for what cannot work, before anything is loaded."""
        self.defence.check()
        if self.defence.needs_risk or self.risk_only:
            self.critic.check()
        check_given(self.defence, self.given)
        _ = self.watched
        if self.sharded and self.defence.changes_start:
            raise InputError(
                f"--fsdp: {type(self.defence).__name__} leaves a whole model, which under FSDP no "
                "process has: train it without --fsdp"
            )
        if self.data is None and not self.is_miniature:
            raise InputError(
                f"--data names no training rows for {self.model}; give a file such as --data "
                "theirs.jsonl (only the miniatures have a default)"
            )
        for name, least, most in (
            ("warmup", 0, 1),
            ("weight_decay", 0, None),
            ("max_length", 1, None),
            ("n_anchors", 1, None),
        ):
            value = getattr(self, name)
            if value is not None and (value < least or (most is not None and value >= most)):
                flag, below = name.replace("_", "-"), "" if most is None else f" and below {most}"
                raise InputError(f"--{flag} {value}: must be at least {least}{below}")
        if not 0 <= self.lora.dropout < 1:
            raise InputError(f"--lora.dropout {self.lora.dropout}: must be from 0 to below 1")
        if self.dtype == "float16":
            raise InputError("--dtype float16: gradients underflow; choose bfloat16 or float32")
        for name in ("epochs", "batch_size", "accumulate", "save_steps", "clip", "anchor_tokens",
                     "canary_every"):  # fmt: skip
            if getattr(self, name) <= 0:
                flag = name.replace("_", "-")
                raise InputError(f"--{flag} {getattr(self, name)}: must be more than zero")
        if self.learning_rate is not None and self.learning_rate <= 0:
            raise InputError(f"--learning-rate {self.learning_rate}: must be more than zero")
        if self.lora.r < 1 or not self.lora.targets:
            raise InputError("--lora.r must be at least 1, and --lora.targets name a layer")

    @property
    def is_miniature(self) -> bool:
        """Whether it is a shipped miniature, which brings its own data."""
        return self.model.startswith("miniature/")

    @property
    def given(self) -> dict[Need, str | None]:
        """Where what the defence needs beside the data comes from."""
        own: dict[Need, str | None] = {"base": None, "safe": None, "harmful": None}
        if self.is_miniature:
            own = {
                "base": f"{self.model.removesuffix('-base')}-base",
                "safe": "miniature:safe",
                "harmful": "miniature:harmful",
            }
        return {need: getattr(self, need) or default for need, default in own.items()}

    @property
    def watched(self) -> str | None:
        """The canary, if the critic has a probe that could read it.

        Raises:
            InputError: One is named, and there is no probe.
        """
        has_probe = probe_of(self.critic) is not None
        if self.canary == "none":
            return None
        if self.canary is None:
            own = has_probe and self.defence.needs_risk and self.is_miniature and not self.sharded
            return "miniature:test" if own else None
        if not has_probe:
            raise InputError(
                f"--canary {self.canary} is read with the critic's frozen probe, and there is "
                "none: choose critic:probe"
            )
        if self.sharded:
            raise InputError(
                f"--canary {self.canary} is read by one process, and under FSDP none has the whole "
                "model: leave it out"
            )
        return self.canary

    @property
    def sharded(self) -> bool:
        """Whether --fsdp, or `accelerate launch --use_fsdp`, shares the model out."""
        return self.fsdp or launched_with("FSDP")

    @property
    def whole(self) -> bool:
        """Whether the result is a whole model, not an adapter."""
        return self.full or self.defence.changes_start

    @property
    def weights(self) -> str:
        """The number format that the weights are loaded in."""
        if self.dtype != "auto":
            return self.dtype
        import torch

        if self.full or self.is_miniature:
            return "float32"
        return "bfloat16" if torch.cuda.is_available() else "auto"

    @property
    def rate(self) -> float:
        """The peak learning rate."""
        default = (2e-3 if self.is_miniature else 2e-4) / (10 if self.full else 1)
        return default if self.learning_rate is None else self.learning_rate


def main(config: TrainConfig) -> None:
    """Assess, show, train, save.

    Raises:
        InputError: Something given cannot be used. Checkpoints that were written are kept.
    """
    config.check()
    from regularize.fine_tuning import fine_tune

    fine_tune(config)


if __name__ == "__main__":
    import tyro

    from probes.commands import run

    sys.exit(
        run(
            main,
            tyro.cli(TrainConfig, prog="python -m regularize.train", description=__doc__),
            several=True,
        )
    )
