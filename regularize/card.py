"""The README that is saved beside a fine-tuned adapter."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, cast

from regularize.plugins import name_of
from regularize.show import terms

if TYPE_CHECKING:
    from regularize.prepare import Prepared
    from regularize.train import TrainConfig


def text(config: TrainConfig, prepared: Prepared, last: Mapping[str, float]) -> str:
    """What was trained on what, how it was held, and what is not known of it."""
    n, kept, s = len(prepared.examples), int(prepared.kept.sum()), prepared.risks.s
    adapter = "" if config.whole else "library_name: peft\n"
    tags = "activation-critic" + ("" if config.whole else ", lora")
    critic = "none"
    if config.defence.needs_risk:
        options = asdict(cast(Any, config.critic)) | dict(config.critic.sources)
        critic = f"{name_of(config.critic)} ({_options(options)}); mean risk {s.mean():.3f}"
        if prepared.risks.failed is not None:
            n_failed = int(prepared.risks.failed.sum())
            critic += f"; {n_failed} rows that it could not tell about have s = 1"
    whole, adapted = "--model FOLDER", f"--model {config.model} --adapter FOLDER"
    return f"""---
base_model: "{config.model}"
{adapter}tags: [{tags}]
---
# {config.model}, fine-tuned with {name_of(config.defence)}

{inspect.cleandoc(type(config.defence).__doc__ or "").splitlines()[0]}
(over answer tokens, with alpha = 1 - beta; the reference pi_ref is {_reference(config)}.)

- Data: {config.data or "miniature:mixed"}: {n} rows, {kept} of them trained on; anchors:
  {len(prepared.anchors)}
- Critic: {critic}
- Defence: {name_of(config.defence)} ({_options(config.defence)})
- Trained: {"all weights" if config.full else f"LoRA ({_options(config.lora)})"}
- Learning rate {config.rate:g}, {config.epochs:g} epochs, {config.batch_size * config.accumulate}
  examples a step and process, seed {config.seed}
- At the last step: {terms(last)} nats per answer token

What it refuses and what it complies with has to be measured, beside the model it came from:

    python -m regularize.evaluate {whole if config.whole else adapted}
"""


def _reference(config: TrainConfig) -> str:
    changed = config.defence.changes_start
    return config.model + (
        ", as the defence has changed it before training" if changed else " itself"
    )


def _options(chosen: Any) -> str:
    options = chosen if isinstance(chosen, dict) else asdict(chosen)
    return ", ".join(f"{name} {_plain(value)}" for name, value in options.items()) or "no options"


def _plain(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
