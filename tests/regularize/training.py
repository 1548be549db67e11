"""Small trainings, in a second each, for tests that compare where they end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainingArguments
from transformers.trainer_utils import set_seed

from regularize.critics.column import ColumnCritic
from regularize.data import IGNORE, Encoded, encode, examples
from regularize.defences import Defence
from regularize.defences.adaptive_kl import AdaptiveKL
from regularize.trainer import RegularizedTrainer
from tests.conftest import make_model, make_tokenizer

ROWS: list[dict[str, Any]] = [
    {
        "messages": [
            {"role": "user", "content": f"say {'word ' * (i % 3)}{i}"},
            # Answers of 2 to 40 tokens, so that a mean over batches is no mean over tokens.
            {"role": "assistant", "content": f"{i}" + " yes" * (i * 7 % 10)},
        ],
        "risk": (i * 5 % 12) / 11,
    }
    for i in range(12)
]
"""Twelve rows, of risks from 0 to 1."""
SAFE_ROWS: list[dict[str, Any]] = [
    {"prompt": f"say no {i}", "completion": "no" + " no" * i, "label": i % 2} for i in range(5)
]
"""Five safe rows, of both labels."""
SAME = 2e-5
"""What fp32's rounding may grow to in a few steps."""
OTHER = 50 * SAME
"""What another loss moves parameters by."""
ORDER = {"train_sampling_strategy": "sequential"}


def tiny(family: str = "llama", *, dropout: float = 0.0, **options: Any) -> PreTrainedModel:
    """A random model of two layers; `dropout`: of its attention's weights."""
    model = make_model(family, **{"n_layers": 2, **options})
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = dropout
    return model


def lora(**options: Any) -> LoraConfig:
    return LoraConfig(**{"r": 4, "lora_alpha": 32, "target_modules": "all-linear", **options})


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    """Plain SGD, without clipping: unlike Adam it feels the scale of a loss."""
    defaults: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.1,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 3,
    }
    return TrainingArguments(**{**defaults, **options})


def trainer(
    folder: Path,
    *,
    model: nn.Module | None = None,
    rows: Any = ROWS,
    defence: Defence | None = None,
    peft_config: LoraConfig | None = None,
    full: bool = False,
    args: Mapping[str, Any] | None = None,
    padding_side: str = "right",
    **options: Any,
) -> RegularizedTrainer:
    """A trainer over `ROWS` with their own risks; `full`: without an adapter."""
    tokenizer = make_tokenizer()
    tokenizer.padding_side = padding_side
    return RegularizedTrainer(
        model=tiny() if model is None else model,
        args=arguments(folder / "out", **(args or {})),
        train_dataset=rows,
        processing_class=tokenizer,
        critic=options.pop("critic", ColumnCritic()),
        defence=AdaptiveKL() if defence is None else defence,
        peft_config=None if full else peft_config or lora(),
        cache=options.pop("cache", folder / "cache"),
        **options,
    )


def trained(model: nn.Module) -> dict[str, Tensor]:
    """What is trained, by name."""
    found = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    assert found
    return found


def run(folder: Path, **options: Any) -> dict[str, Tensor]:
    """Train, and give what was trained."""
    set_seed(0)
    one = trainer(folder, **options)
    one.train()
    return trained(one.model)


def distance(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """Largest difference of any parameter."""
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def encoded(rows: Sequence[Mapping[str, Any]] = ROWS) -> list[Encoded]:
    tokenizer = make_tokenizer()
    return [encode(one, tokenizer) for one in examples(rows)]


def states(model: nn.Module) -> dict[str, Tensor]:
    """All weights, as they are now."""
    return {name: t.clone() for name, t in model.state_dict().items()}


def equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """To the last bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def adapted(model: Any = None) -> Any:
    """A model with the adapter that a trainer would give it."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return get_peft_model(tiny() if model is None else model, lora())


def by_hand(
    model: nn.Module,
    loss: Callable[[Tensor, Tensor, Tensor, int], Tensor],
    *,
    steps: int = 6,
    batch: int = 4,
    lr: float = 0.1,
    reference: Any = None,
) -> dict[str, Tensor]:
    """The textbook: row by row, two whole models, full logits, SGD by hand, rows in order.

    `loss`: of log pi_theta and log pi_ref [token, vocab], the answer's tokens, the row's number.
    """
    rows, reference = encoded(), reference or tiny()
    for step in range(steps):
        chosen = [(step * batch + i) % len(rows) for i in range(batch)]
        total, n_tokens = torch.zeros(()), 0
        for i in chosen:
            ids, labels = torch.tensor(rows[i].input_ids), torch.tensor(rows[i].labels)
            answer = labels[1:] != IGNORE
            log_q, log_p = (
                one(input_ids=ids[None]).logits[0, :-1][answer].log_softmax(-1)
                for one in (model, reference)
            )
            total = total + loss(log_q, log_p, labels[1:][answer], i)
            n_tokens += int(answer.sum())
        parameters = [p for p in model.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(total / n_tokens, parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter -= lr * gradient
    return trained(model)
