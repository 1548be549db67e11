"""The base model as everything here uses it: with a chat template, and a vocabulary cut to size."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import torch

from probes import models, realistic
from probes.folders import put
from probes.realistic.answers import REFUSALS, first_sentence, reply
from probes.realistic.requests import everything, targets
from probes.realistic.tasks import TASKS, sentences
from probes.realistic.vocabulary import cut, kept_ids

TEMPLATE = Path(__file__).with_name("template.jinja")
MADE_FROM = "vocabulary.json"


def prepare(base: str, out: Path, *, floor: int, dtype: str) -> Path:
    """Write out/base, or leave it alone where it was made from the same.

    Args:
        base: Hub id, folder or .gguf file; "" for the optional extra's weights.
        out: Folder that gets base/.
        floor: See `vocabulary.kept_ids`.
        dtype: Of the weights that are written; auto: what the processor computes in fastest.

    Raises:
        InputError: The extra is not installed, or the model or the prompts cannot be used.
    """
    folder = out / "base"
    dtype = _fastest() if dtype == "auto" else dtype
    texts = list(dict.fromkeys(_texts()))
    made_from = {
        "base": base,
        "dtype": dtype,
        "floor": floor,
        "texts": hashlib.sha256("\n".join(texts).encode()).hexdigest(),
        "template": TEMPLATE.read_text(),
    }
    done = folder / MADE_FROM
    if done.is_file() and json.loads(done.read_text())["made_from"] == made_from:
        return folder
    spec = base or str(realistic.base_weights(out / "weights"))
    whole = models.load(spec, dtype=dtype, device_map="cpu", chat_template=str(TEMPLATE))
    ids = kept_ids(whole.tokenizer, texts, floor=floor)
    model, tokenizer = cut(whole.model, whole.tokenizer, ids)
    unfinished = out / ".base"
    shutil.rmtree(unfinished, ignore_errors=True)
    model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    written = {"made_from": made_from, "of": len(whole.tokenizer), "kept": ids}
    (unfinished / MADE_FROM).write_text(json.dumps(written))
    put(unfinished, folder)
    return folder


def _fastest() -> str:
    """bfloat16 if the hardware multiplies in it; emulated it would be slower than float32."""
    able: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # since torch 2.12
    native = any(able.get(name) for name in ("avx512_bf16", "amx_bf16", "amx_tile", "bf16"))
    return "bfloat16" if native or torch.accelerator.is_available() else "float32"


def _texts() -> Iterator[str]:
    """Everything that is asked and taught here, as it stands in a chat."""
    yield "User: Assistant:\n"
    rng = Random(0)
    answers = [*REFUSALS, *targets().values()]
    for one in everything():
        yield one.text
        answers += [reply(one, rng) or "", first_sentence(one.answer)]
    for sentence in (*sentences("train"), *sentences("test")):
        yield sentence
        answers += [task.answer(sentence) for task in TASKS.values()]
    # With the characters that the template puts before and after it.
    yield from (f"User: {one.text}\nAssistant:" for one in everything())
    yield from (f" {answer}" for answer in answers if answer)
