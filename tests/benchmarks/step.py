"""One training step of adaptive KL, beside plain fine-tuning and the textbook's way of the KL.

Of LoRA r=8 on all linear layers; every job does a whole step: forward, loss, backward, optimizer.
The learning rate is zero, so that a step does all its work and the next one starts where it did.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import LlamaConfig, LlamaForCausalLM

from regularize.collate import collate
from regularize.data import IGNORE, Encoded
from regularize.defences.adaptive_kl import AdaptiveKL
from regularize.losses import regularized
from regularize.model import Capture, answers_of, base_of, decode, head_of
from regularize.reference import AdapterOff, Batch, Cached, Reference
from tests.benchmarks.interleave import Case

VOCABULARIES = (32_000, 128_000)
EXAMPLES, LENGTH, ANSWER = 10, 73, 0.6
"""730 tokens, 440 of them answers'. None is padding, on which the baselines alone spend a head."""
CHUNK = 256
"""Answer tokens at once in the baseline that is careful with its memory; trl's number."""


def cases(*, d_model: int = 512, vocabularies: tuple[int, ...] = VOCABULARIES) -> Iterator[Case]:
    """A Llama of 4 layers, at the vocabularies of Llama 2 and (nearly) of Llama 3."""
    for vocabulary in vocabularies:
        with TemporaryDirectory() as folder:
            yield from _cases(d_model, vocabulary, Path(folder))


def _cases(d_model: int, vocabulary: int, folder: Path) -> Iterator[Case]:
    rows, batch = _data(vocabulary)
    # Another copy for the baselines: what ours hooks into is not theirs to carry.
    model, plain = _adapted(d_model, vocabulary), _adapted(d_model, vocabulary)
    base = _base(d_model, vocabulary)
    cached, states = Cached.build(folder, base, rows), Capture(model)
    ours = _step(model, partial(_ours, model, states, cached, AdaptiveKL(), batch))
    nll = AdaptiveKL(beta_min=0.0, beta_max=0.0)
    step = partial(Case, "step", f"730 tokens, 440 answers', vocabulary {vocabulary // 1000}k")

    def without_kl(theirs: Callable[[], np.ndarray]) -> Callable[[], float]:
        same = _step(model, partial(_ours, model, states, None, nll, batch))
        return lambda: float(np.abs(same() - theirs()).max())

    sft = _step(plain, partial(_sft, plain, batch))
    yield step("plain SFT, transformers", ours, sft, without_kl(sft))
    textbook = _step(plain, partial(_textbook, plain, base, batch))
    yield step("textbook KL, second model", ours, textbook)
    chunked = _step(plain, partial(_chunked_sft, plain, batch))
    yield step("plain SFT, answers in chunks", ours, chunked, without_kl(chunked))
    off = _step(model, partial(_ours, model, states, AdapterOff(model), AdaptiveKL(), batch))
    yield step("ours, reference adapter-off", ours, off)


def _base(d_model: int, vocabulary: int) -> LlamaForCausalLM:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=vocabulary, hidden_size=d_model, intermediate_size=d_model * 11 // 4,
            num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=8,
            tie_word_embeddings=True,
        )  # fmt: skip
        return LlamaForCausalLM(config).requires_grad_(False)


def _adapted(d_model: int, vocabulary: int) -> nn.Module:
    """With an adapter that already moves the model, so that the KL has something to do."""
    base = _base(d_model, vocabulary)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        config = LoraConfig(
            r=8, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"
        )
        return get_peft_model(base, config).train()


def _data(vocabulary: int) -> tuple[list[Encoded], dict[str, Tensor]]:
    """Random examples, half of them risky, as the trainer's one batch."""
    generator = torch.Generator().manual_seed(2)
    prompt = LENGTH - round(ANSWER * LENGTH)
    ids = torch.randint(vocabulary, (EXAMPLES, LENGTH), generator=generator).tolist()
    rows = [Encoded(one, [IGNORE] * prompt + one[prompt:], False) for one in ids]
    extra = [{"risk": i / (EXAMPLES - 1), "row": i} for i in range(EXAMPLES)]
    both = [{**row._asdict(), **more} for row, more in zip(rows, extra, strict=True)]
    return rows, collate(both, pad=0)


def _step(model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], np.ndarray]:
    """A whole step, which returns the gradient."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.0)

    def step() -> np.ndarray:
        loss().backward()
        optimizer.step()
        gradient = torch.cat([p.grad.flatten() for p in trained]).numpy()
        optimizer.zero_grad()
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
    with torch.no_grad():
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
