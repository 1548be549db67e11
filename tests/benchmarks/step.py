"""One training step of adaptive KL, beside plain fine-tuning and the textbook's way of the KL.

Of LoRA r=8 on all linear layers; every job does a whole step: forward, loss, backward, optimizer.
The learning rate is zero, so that a step does all its work and the next one starts where it did.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from regularize.collate import collate
from regularize.data import IGNORE, Encoded
from regularize.defences.adaptive_kl import AdaptiveKL
from regularize.losses import regularized
from regularize.model import Capture, adapter_off, answers_of, base_of, decode, head_of
from regularize.reference import AdapterOff, Batch, Cached, Reference
from tests.benchmarks.cases import Against, Baseline, Group, Job
from tests.benchmarks.workloads import Shape

SMALL = Shape(n_layers=4, tied=True)
VOCABULARIES = (32_000, 128_000)
ANSWER = 0.6
"""Of each sequence. None of it is padding, on which the baselines alone spend a head."""
CHUNK = 256
"""Answer tokens at once in the baseline that is careful with its memory; trl's number."""
NLL = AdaptiveKL(beta_min=0.0, beta_max=0.0)
"""Plain fine-tuning by our own loss, for comparing gradients."""


class Size(NamedTuple):
    """Of a step."""

    shape: Shape
    examples: int = 10
    length: int = 73
    """Tokens of an example."""
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    shared: bool = False
    """One model for ours and the baselines, where a copy is dear."""

    @property
    def name(self) -> str:
        """Tokens and vocabulary, as the tables say it."""
        answers = self.examples * (self.length - _prompt(self))
        vocabulary = f"vocabulary {self.shape.vocabulary // 1000}k"
        return f"{self.examples * self.length} tokens, {answers} answers', {vocabulary}"


class Built(NamedTuple):
    """All that the steps work on."""

    model: nn.Module
    plain: nn.Module
    """What the baselines train."""
    base: nn.Module
    """Without an adapter, for the textbook's second model."""
    states: Capture
    cached: Cached
    batch: dict[str, Tensor]
    folder: TemporaryDirectory[str]
    """Of the cached reference."""


def build(size: Size) -> Built:
    """A model with an adapter; another copy for the baselines, as our hook is not theirs."""
    rows, batch = _data(size)
    base = size.shape.model(device=size.device, dtype=size.dtype)
    if size.shared:
        base = model = plain = _adapted(base)
    else:
        model, plain = (
            _adapted(size.shape.model(device=size.device, dtype=size.dtype)) for _ in range(2)
        )
    folder = TemporaryDirectory()
    cached, states = Cached.build(Path(folder.name), base, rows), Capture(model)
    on_device = {name: tensor.to(size.device) for name, tensor in batch.items()}
    return Built(model, plain, base, states, cached, on_device, folder)


def ours(built: Built) -> Job:
    """Adaptive KL with the cached reference."""
    return _ours_with(built, built.cached, AdaptiveKL())


def _ours_with(built: Built, reference: Reference | None, defence: AdaptiveKL) -> Job:
    model, states, batch = built.model, built.states, built.batch
    return _step(model, partial(_ours, model, states, reference, defence, batch))


def _sft_beside(loss: Callable[[nn.Module, dict[str, Tensor]], Tensor], built: Built) -> Against:
    """Ours is compared without its KL."""
    same = _ours_with(built, None, NLL)
    return Against(_step(built.plain, partial(loss, built.plain, built.batch)), same)


def _second_model(built: Built) -> Against:
    return Against(_step(built.plain, partial(_textbook, built.plain, built.base, built.batch)))


def _textbook_off(built: Built) -> Against:
    return Against(_step(built.plain, partial(_textbook, built.plain, built.plain, built.batch)))


def _off(built: Built) -> Against:
    return Against(_ours_with(built, AdapterOff(built.model), AdaptiveKL()))


def _adapted(base: nn.Module) -> nn.Module:
    """With an adapter that already moves the model, so that the KL has something to do."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        config = LoraConfig(
            r=8, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"
        )
        return get_peft_model(base, config).train()


def _prompt(size: Size) -> int:
    return size.length - round(ANSWER * size.length)


def _data(size: Size) -> tuple[list[Encoded], dict[str, Tensor]]:
    """Random examples, half of them risky, as the trainer's one batch."""
    generator = torch.Generator().manual_seed(2)
    shape = (size.examples, size.length)
    ids = torch.randint(size.shape.vocabulary, shape, generator=generator).tolist()
    prompt = _prompt(size)
    rows = [Encoded(one, [IGNORE] * prompt + one[prompt:], False) for one in ids]
    extra = [{"risk": (i + 0.5) / size.examples, "row": i} for i in range(size.examples)]
    both = [{**row._asdict(), **more} for row, more in zip(rows, extra, strict=True)]
    return rows, collate(both, pad=0)


def _step(model: nn.Module, loss: Callable[[], Tensor]) -> Job:
    """A whole step, which returns the gradient."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.0)

    def step() -> Tensor:
        loss().backward()
        optimizer.step()
        gradient = torch.cat([p.grad.flatten() for p in trained])
        optimizer.zero_grad()
        if gradient.is_cuda:
            torch.cuda.synchronize()
        return gradient

    return step


def _ours(
    model: nn.Module,
    states: Capture,
    reference: Reference | None,
    defence: AdaptiveKL,
    batch: dict[str, Tensor],
) -> Tensor:
    """What `RegularizedTrainer.compute_loss` does."""
    ids, mask, labels = (batch[name] for name in ("input_ids", "attention_mask", "labels"))
    answer = answers_of(labels)
    hidden = states(model, ids, mask)[:, :-1][answer]
    alpha, beta = defence.weights(batch["risk"])
    example = answer.nonzero()[:, 0]
    known = reference and reference.at(Batch(ids, mask, answer, batch["row"]))
    target = labels[:, 1:][answer]
    terms = regularized(hidden, head_of(model), target, alpha[example], beta[example], known)
    return terms.loss / len(target)


def _sft(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """As transformers' `Trainer` calls it."""
    names = ("input_ids", "attention_mask", "labels")
    n_answers = (batch["labels"] != IGNORE).sum()
    return model(**{name: batch[name] for name in names}, num_items_in_batch=n_answers).loss


def _textbook(model: nn.Module, reference: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Full logits of two models, and the formula."""
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    answer = batch["labels"][:, 1:] != IGNORE
    target = batch["labels"][:, 1:][answer]
    alpha, beta = (w[answer.nonzero()[:, 0]] for w in AdaptiveKL().weights(batch["risk"]))
    # The same model without its adapter, or another one that never had any.
    with torch.no_grad(), adapter_off(reference):
        theirs = reference(**inputs, use_cache=False).logits[:, :-1][answer]
        log_p = torch.log_softmax(theirs, -1)
    log_q = torch.log_softmax(model(**inputs, use_cache=False).logits[:, :-1][answer], -1)
    nll = F.nll_loss(log_q, target, reduction="none")
    kl = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)
    return (alpha * nll + beta * kl).sum() / len(target)


def _chunked_sft(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """No head where nothing is learnt, and the logits of some answer tokens at a time."""
    head = head_of(model)

    def summed(hidden: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(hidden, head.weight), target, reduction="sum")

    answer = batch["labels"][:, 1:] != IGNORE
    hidden = decode(base_of(model), batch["input_ids"], batch["attention_mask"])[:, :-1][answer]
    target = batch["labels"][:, 1:][answer]
    parts = zip(hidden.split(CHUNK), target.split(CHUNK), strict=True)
    return sum(checkpoint(summed, *part, use_reentrant=False) for part in parts) / len(target)


SFT = Baseline("plain SFT, transformers", partial(_sft_beside, _sft))
CHUNKED = Baseline("plain SFT, answers in chunks", partial(_sft_beside, _chunked_sft))
TEXTBOOK_OFF = Baseline("textbook KL, adapter off", _textbook_off)
OFF = Baseline("ours, reference adapter-off", _off)


def groups() -> tuple[Group, ...]:
    """A Llama of 4 layers, at the vocabularies of Llama 2 and (nearly) of Llama 3."""
    return tuple(group(Size(SMALL._replace(vocabulary=n))) for n in VOCABULARIES)


def group(size: Size) -> Group:
    """Of one size, on the CPU."""
    baselines = (SFT, Baseline("textbook KL, second model", _second_model, rounds=3), CHUNKED, OFF)
    return Group("step", size.name, partial(build, size), ours, baselines)
