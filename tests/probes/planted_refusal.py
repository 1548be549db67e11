"""A chat model of which it is known why it refuses, and what merely shows that it will.

`harm` or `calm` in the prompt is carried by uniform attention to the last token, where it is
written on two axes alike: USED, from which the head decides between `Sorry` and `Sure`, and UNUSED,
which nothing reads. A probe can read either perfectly.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from probes import models, prompts
from probes.frozen import FrozenProbe
from probes.models import template_hash, weights_fingerprint
from probes.provenance import ProbeConfig
from tests.conftest import CHAT_TEMPLATE, SPECIALS, make_model

KIND, USED, UNUSED, ANSWER, CALM = range(5)
"""Axes of the residual stream; the others hold what words there are, and decide nothing."""
WORDS = tuple(f"w{i}" for i in range(12))
SAID = ("Sure", "Sorry")
VOCABULARY = (*SPECIALS, "harm", "calm", *WORDS, *SAID)
D_MODEL = 32
LAYER = 1
WRITTEN = 2.67
"""What `harm` writes on either axis after block 0, among six words; `calm` writes the negative."""


def axis(which: int) -> torch.Tensor:
    return torch.eye(D_MODEL)[which]


def tokenizer() -> PreTrainedTokenizerFast:
    ids = {word: i for i, word in enumerate(VOCABULARY)}
    backend = Tokenizer(WordLevel(ids, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens(list(SPECIALS))
    made = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    made.chat_template = CHAT_TEMPLATE
    return made


def model() -> PreTrainedModel:
    """Refuses just where the last token's USED is above half of what `harm` writes there."""
    made = make_model("llama", vocab_size=len(VOCABULARY), n_layers=3, d_model=D_MODEL)
    ids = {word: i for i, word in enumerate(VOCABULARY)}
    with torch.no_grad():
        for block in made.model.layers:
            for weight in block.parameters():
                weight.zero_()
            block.input_layernorm.weight.fill_(1)
            block.post_attention_layernorm.weight.fill_(1)
        table = made.model.embed_tokens.weight
        table[:, : CALM + 1] = 0
        table[ids["harm"], KIND], table[ids["calm"], KIND] = 3, -3
        table[ids["harm"], CALM + 1 :] = table[ids["calm"], CALM + 1 :]
        table[ids["<|assistant|>"], CALM] = 3
        for said in SAID:
            table[ids[said], ANSWER] = 10
        attention = made.model.layers[0].self_attn
        attention.v_proj.weight[0] = axis(KIND)
        attention.o_proj.weight[[USED, UNUSED], 0] = 5
        generator = torch.Generator().manual_seed(0)
        for i in range(1, 8):  # what words there are shows at the last token too
            attention.v_proj.weight[i, CALM + 1 :] = torch.randn(27, generator=generator)
            attention.o_proj.weight[CALM + 1 :, i] = 0.05 * torch.randn(27, generator=generator)
        head = made.lm_head.weight
        head.zero_()
        head[ids["Sorry"], USED], head[ids["Sure"], USED] = 1, -1
        head[ids["Sure"], CALM] = WRITTEN / 3  # half of what `harm` writes does not suffice
        head[ids["</s>"], ANSWER] = 10
    return made


class Planted(NamedTuple):
    folder: Path
    train: Path
    held_out: Path


def write_prompts(path: Path, seed: int, n: int = 60) -> Path:
    generator = torch.Generator().manual_seed(seed)
    lines = []
    for i in range(n):
        drawn = torch.randint(len(WORDS), (5,), generator=generator).tolist()
        text = " ".join([("calm", "harm")[i % 2], *(WORDS[word] for word in drawn)])
        lines.append(json.dumps({"prompt": text, "label": i % 2}))
    path.write_text("\n".join(dict.fromkeys(lines)))
    return path


def save(folder: Path) -> Planted:
    """The model and two prompt sets, as a user has them."""
    model().save_pretrained(folder / "model")
    tokenizer().save_pretrained(folder / "model")
    return Planted(
        folder / "model",
        write_prompts(folder / "mine.jsonl", 0),
        write_prompts(folder / "theirs.jsonl", 1),
    )


def freeze(folder: Path, chat: str, train: str, weight: torch.Tensor, layer: int = LAYER) -> str:
    """A frozen probe of any weights, saved."""
    loaded = models.load(chat, device_map="cpu")
    rows = prompts.load(train)
    probe = FrozenProbe(
        ProbeConfig(
            base_model=chat,
            revision=None,
            weights=weights_fingerprint(loaded.model),
            template=template_hash(loaded.tokenizer),
            hook_point="resid_post",
            position="last-input-token",
            max_length=None,
            n_layers=loaded.model.config.num_hidden_layers,
            d_model=weight.shape[-1],
            readout="layer" if weight.ndim == 1 else "pooled-mean",
            layers=(layer,) if weight.ndim == 1 else tuple(range(len(weight))),
            C=1.0,
            train_set=rows.name,
            train_hash=rows.hash,
            auroc=None,
            threshold_fpr=0.01,
            threshold=None,
            realised_fpr=None,
        )
    )
    probe.weight.copy_(weight)
    probe.save_pretrained(folder)
    return str(folder)
