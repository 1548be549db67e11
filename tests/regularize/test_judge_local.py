"""A judge that runs here: the expected score over five tokens, beside plain transformers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from probes.errors import InputError
from regularize.critics.judge import JudgeCritic, _exchanges
from regularize.data import Example, examples
from regularize.judging import Question
from regularize.judging.local import PREFIX, Local, begin
from regularize.judging.rubric import Rubric
from tests.conftest import make_model, make_tokenizer

ANY: Any = None
ROWS: list[Example] = examples(
    [{"prompt": f"do {i} {'x' * (i * 13 % 40)}", "completion": f"done {i}"} for i in range(7)]
)
SHORT = Rubric("{prompt}{answer}")


Save = Callable[..., Path]


@pytest.fixture
def saved(tiny_folder: Save) -> Save:
    """`saved("llama", seed=1)`: a model's folder, with room for a rubric in its context."""

    def save(family: str, *, seed: int) -> Path:
        folder = tiny_folder(family, seed=seed)
        config = folder / "config.json"
        config.write_text(config.read_text().replace('embeddings": 512', 'embeddings": 4096'))
        return folder

    return save


@pytest.fixture
def short(tmp_path: Path) -> Path:
    path = tmp_path / "short.txt"
    path.write_text(SHORT.text)
    return path


def critic(folder: Path, tmp_path: Path, **options: Any) -> JudgeCritic:
    default = {"least_mass": 0.0, "dtype": "float32", "cache": tmp_path / "judge"}
    return JudgeCritic(str(folder), **{**default, **options})


@torch.no_grad()
def naive(folder: Path, row: int) -> tuple[float, float]:
    """Expected score and mass, one row at a time, the text put together by hand."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    asked = SHORT.ask(Question(_exchanges(ROWS, [one.answer for one in ROWS])[row]))
    chat = [{"role": "user", "content": asked}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text + "SCORE: ", add_special_tokens=False, return_tensors="pt").input_ids
    logits = model(ids).logits[0, -1]
    digits = [tokenizer(str(d), add_special_tokens=False).input_ids[0] for d in range(1, 6)]
    among = logits[digits].softmax(0)
    mass = float(logits.softmax(0)[digits].sum())
    return float((among * torch.arange(1, 6)).sum()), mass


def test_the_score_is_the_expected_one(saved: Save, short: Path, tmp_path: Path) -> None:
    folder = saved("llama", seed=1)
    found = critic(folder, tmp_path, rubric=short).assess(ROWS, ANY)
    wanted = [naive(folder, i) for i in range(len(ROWS))]
    np.testing.assert_allclose(1 + 4 * found.s, [one[0] for one in wanted], atol=1e-5)
    assert np.ptp(found.s) > 0.01 and len(set(found.s)) == len(ROWS)
    # Another model says otherwise.
    other = critic(saved("llama", seed=2), tmp_path, rubric=short).assess(ROWS, ANY)
    assert np.abs(other.s - found.s).max() > 0.01

    # A judge that would rather say something else has no verdict.
    middle = float(np.mean(sorted(one[1] for one in wanted)[3:5]))
    strict = critic(folder, tmp_path, rubric=short, least_mass=middle)
    with pytest.raises(InputError, match=r"no verdict on 4 of 7 rows") as error:
        strict.assess(ROWS, ANY)
    assert "would rather say no score" in str(error.value)
    cautious = replace(strict, on_judge_failure="most-cautious").assess(ROWS, ANY)
    lost = np.array([mass <= middle for _, mass in wanted])
    np.testing.assert_array_equal(cautious.failed, lost)
    assert cautious.s[lost].tolist() == [1.0] * 4
    np.testing.assert_array_equal(cautious.s[~lost], found.s[~lost])


def test_what_is_known_is_not_computed_nor_the_model_loaded(
    saved: Save, short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved("qwen2", seed=1)
    found = critic(folder, tmp_path, rubric=short).assess(ROWS, ANY)
    assert found.tally and found.tally["calls"] == 7 and found.tally["prompt_tokens"] > 0

    def refuse(self: Local) -> None:
        raise AssertionError("the judge was loaded")

    with monkeypatch.context() as patch:
        patch.setattr(Local, "chat", property(refuse))
        again = critic(folder, tmp_path, rubric=short).assess(ROWS, ANY)
        np.testing.assert_array_equal(again.s, found.s)
        with pytest.raises(AssertionError):
            critic(folder, tmp_path, rubric=short).assess([ROWS[0], *examples(
                [{"prompt": "new", "completion": "new"}])], ANY)  # fmt: skip
    # Other weights in the same folder are another judge.
    other = make_model("qwen2", seed=2)
    other.config.max_position_embeddings = 4096
    other.save_pretrained(folder)
    changed = critic(folder, tmp_path, rubric=short).assess(ROWS, ANY)
    assert changed.tally and changed.tally["calls"] == 7
    assert np.abs(changed.s - found.s).max() > 0.01


def test_what_is_too_long_is_a_fault(tiny_folder: Save, tmp_path: Path) -> None:
    """The rubric alone is longer than this model's context."""
    with pytest.raises(InputError, match=r"longer than the judge's context: '\d+ tokens, of which"):
        critic(tiny_folder("llama", seed=1), tmp_path).assess(ROWS, ANY)


def test_scores_that_are_no_single_tokens_are_refused() -> None:
    tokenizer = make_tokenizer()
    begun = begin(tokenizer, "do it")
    assert tokenizer.decode(begun.scores) == "12345"
    assert tokenizer.decode(begun.ids).endswith(f"<|assistant|>\n{PREFIX}")
    template = str(tokenizer.chat_template)
    spelt = make_tokenizer(template.replace("['content']", "['content'] | replace('3', 'three')"))
    with pytest.raises(InputError, match="no single tokens for the scores 1 to 5"):
        begin(spelt, "do it")


def test_a_space_may_be_part_of_the_scores_token() -> None:
    """As in tokenizers that join them."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    tokens = ["?", "do", "▁SCORE:", *(f"▁{digit}" for digit in range(6))]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="?")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] + ' ' }}{% endfor %}"
    begun = begin(tokenizer, "do")
    assert begun.scores == tuple(vocabulary[f"▁{d}"] for d in range(1, 6))
    assert begun.ids[-1] == vocabulary["▁SCORE:"]
