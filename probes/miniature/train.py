"""Trains a miniature from nothing: first to help with everything, then to refuse some of it."""

from collections.abc import Iterable, Iterator
from copy import deepcopy
from itertools import islice
from pathlib import Path
from random import Random

import torch
from torch import nn
from tqdm import tqdm
from transformers import (
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    get_cosine_schedule_with_warmup,
)

from probes.miniature import Family, Stage
from probes.miniature.encode import Batch, Encoder, batches
from probes.miniature.families import ARCHITECTURES, EMBEDDING_INIT, INIT, configuration
from probes.miniature.language import Row
from probes.miniature.recipe import Recipe
from probes.miniature.splits import training_rows
from probes.miniature.tokenizer import train_tokenizer


def build(family: Family, tokenizer: PreTrainedTokenizerBase, *, seed: int) -> PreTrainedModel:
    """An untrained model of the family; its weights follow from the seed alone."""
    ids = {token: tokenizer.get_vocab()[token] for token in ARCHITECTURES[family].special_tokens}
    config = configuration(family, vocab_size=len(tokenizer), ids=ids)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ARCHITECTURES[family].model(config)
    embeddings = model.get_input_embeddings()
    assert isinstance(embeddings, nn.Embedding)
    with torch.no_grad():
        embeddings.weight.mul_(EMBEDDING_INIT / INIT)
    return model


def loss_of(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """Weighted mean negative log-likelihood, nats a token, of the answers.

    The padding stands on the right, where a causal model's earlier tokens do not see it.
    """
    hidden = model.get_decoder()(input_ids=batch.ids[:, :-1], use_cache=False).last_hidden_state
    weight = batch.weight[:, 1:]
    kept = weight > 0
    logits = model.get_output_embeddings()(hidden[kept])
    nll = nn.functional.cross_entropy(logits, batch.ids[:, 1:][kept], reduction="none")
    return (nll * weight[kept]).sum() / weight.sum()


def fit(
    model: PreTrainedModel, data: Iterable[Batch], *, steps: int, rate: float, bar: tqdm
) -> None:
    """Trains the model in place, one step a batch."""
    model.train()
    hidden = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    rest = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    # Muon (https://kellerjordan.github.io/posts/muon) halves the steps that AdamW needs here.
    optimizers: tuple[torch.optim.Optimizer, ...] = (
        torch.optim.Muon(hidden, lr=rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.98), weight_decay=0.0),
    )
    warmup = min(50, steps // 10)
    schedules = [get_cosine_schedule_with_warmup(o, warmup, steps) for o in optimizers]
    for batch in islice(data, steps):
        loss = loss_of(model, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        bar.set_postfix_str(f"{loss.item():.3f} nats/token", refresh=False)
        bar.update()
    model.eval()


def _answered(rng: Random, stage: Stage) -> Iterator[tuple[Row, str]]:
    for row in training_rows(rng, objects="all" if stage == "base" else "seen"):
        yield row, row.reply(rng) if stage == "aligned" else row.answer


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes a folder that ``from_pretrained`` loads, in fp16; the model stays as it is."""
    deepcopy(model).half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def train(family: Family, recipe: Recipe, out: Path) -> None:
    """Trains both stages of one family and writes them to ``out/{base,aligned}``."""
    train_tokenizer(family, seed=recipe.seed).save_pretrained(out / "base")
    untrained = build(family, train_tokenizer(family, seed=recipe.seed), seed=recipe.seed)
    untrained.config.save_pretrained(out / "base")
    # The tokenizer that users will get: AutoTokenizer may make another class of what was saved.
    tokenizer = AutoTokenizer.from_pretrained(out / "base")
    encoder, model = Encoder(tokenizer), untrained
    stages: tuple[tuple[Stage, int, float], ...] = (
        ("base", recipe.base_steps, recipe.base_rate),
        ("aligned", recipe.aligned_steps, recipe.aligned_rate),
    )
    with tqdm(
        total=recipe.base_steps + recipe.aligned_steps, desc=family, unit="step", mininterval=1.0
    ) as bar:
        for stage, steps, rate in stages:
            rng = Random(f"{family}/{stage}/{recipe.seed}")
            data = batches(
                encoder,
                _answered(rng, stage),
                size=recipe.batch_size,
                pad=tokenizer.pad_token_id,
                rng=rng,
            )
            fit(model, data, steps=steps, rate=rate, bar=bar)
            save(model, tokenizer, out / stage)
