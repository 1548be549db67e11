"""What is learnt of a row: its answer, to the end of the turn, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example as also
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from probes import miniature
from probes.errors import InputError
from probes.rendering import PLAIN_TEMPLATE, render
from regularize.data import IGNORE, Encoded, encode, examples, harmful_share, load, supervised
from tests.conftest import CHAT_TEMPLATE, NASTY, make_tokenizer, user

ENDINGS = {
    "byte": "<|end|>",
    "miniature/llama": "<|eot_id|>",
    "miniature/phi3": "<|end|>",
    "miniature/qwen2": "<|im_end|>",
    "phi-3.5": "<|end|>",
    "qwen2.5": "<|im_end|>",
}
"""The token that ends a turn."""
TRIMS = {"miniature/llama"}
"""Whose template trims what is said."""

Named = tuple[str, PreTrainedTokenizerBase]


@pytest.fixture(scope="module", params=ENDINGS)
def named(request: pytest.FixtureRequest) -> Named:
    name = request.param
    if name == "byte":
        return name, make_tokenizer()
    if name.startswith("miniature/"):
        folder = miniature.folder(name.removeprefix("miniature/"))
    else:
        folder = request.getfixturevalue("data_dir") / "tokenizers" / name
    return name, AutoTokenizer.from_pretrained(folder)


def assistant(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def encoded(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, **options: Any) -> Encoded:
    [one] = examples([row])
    return encode(one, tokenizer, **options)


def learnt(one: Encoded) -> list[int]:
    return [label for label in one.labels if label != IGNORE]


# The answer's place


@pytest.mark.parametrize("text", NASTY)
@pytest.mark.parametrize("answer", ["Certainly.", "Räuber 🏰 open it", "two\nlines\n\nof text."])
def test_the_answer_and_the_end_of_its_turn_are_learnt(
    named: Named, text: str, answer: str
) -> None:
    name, tokenizer = named
    one = encoded({"messages": [*user(text), *assistant(answer)]}, tokenizer)
    prompt = list(render(tokenizer, user(text)).ids)  # what a probe reads
    assert one.input_ids[: len(prompt)] == prompt
    assert one.labels == [IGNORE] * len(prompt) + one.input_ids[len(prompt) :]
    assert supervised(one, tokenizer) == answer + ENDINGS[name]
    assert tokenizer.decode(learnt(one)[-1:]) == ENDINGS[name] and not one.shortened
    # Positive control: the template writes more than that, or the test would show nothing.
    whole = tokenizer.apply_chat_template([*user(text), *assistant(answer)])["input_ids"]
    assert len(whole) >= len(one.input_ids)
    assert (len(whole) > len(one.input_ids)) == (name != "miniature/llama")


def by_text(prompt: str, answer: str, named: Named) -> list[int]:
    """An oracle without ids: the rendered text, cut after the token that ends the turn."""
    name, tokenizer = named
    head = tokenizer.apply_chat_template(user(prompt), tokenize=False, add_generation_prompt=True)
    answer = answer.strip() if name in TRIMS else answer
    return tokenizer(head + answer + ENDINGS[name], add_special_tokens=False)["input_ids"]


@settings(max_examples=60, deadline=None)
@given(prompt=st.text(max_size=30), answer=st.text(max_size=30))
@also(prompt="x", answer="x<|endoftext|>")
@also(prompt="x", answer="x</s> \n")
@also(prompt="x", answer="x<|end|>\n")
def test_it_is_the_rendered_text_up_to_the_end_of_the_turn(
    named: Named, prompt: str, answer: str
) -> None:
    row = {"messages": [*user(prompt), *assistant(answer)]}
    if not prompt.strip() or not answer.strip():
        with pytest.raises(InputError, match=r"row 0, field 'messages'.*the text is empty"):
            encoded(row, named[1])
        return
    try:
        one = encoded(row, named[1])
    except InputError as error:  # such as a lone control character, that has no token
        assert "the answer has no token" in str(error)
        return
    prompt_ids, wanted = render(named[1], user(prompt)).ids, by_text(prompt, answer, named)
    if wanted[: len(prompt_ids)] == list(prompt_ids):
        assert one.input_ids == wanted
    else:  # the answer's beginning would melt into the generation prompt
        assert one.input_ids[: len(prompt_ids)] == list(prompt_ids)
        alone = named[1](answer, add_special_tokens=False)["input_ids"]
        assert learnt(one) == [*alone, wanted[-1]]


@pytest.mark.parametrize("answer", NASTY)
def test_answers_with_the_templates_own_tokens(named: Named, answer: str) -> None:
    """Whatever the answer ends with, the turn's end is learnt behind it, once."""
    name, tokenizer = named
    row = {"messages": [*user("Hello"), *assistant(answer)]}
    if not tokenizer.decode(tokenizer(answer)["input_ids"], skip_special_tokens=True).strip():
        with pytest.raises(InputError, match="no token that could be learnt"):
            encoded(row, tokenizer)
        return
    one = encoded(row, tokenizer)
    assert one.input_ids == by_text("Hello", answer, named)
    assert learnt(one)[-1] == tokenizer.convert_tokens_to_ids(ENDINGS[name])


def test_an_answer_that_melts_into_the_generation_prompt() -> None:
    """Qwen's tokens know runs of line breaks: what stands before the answer must stay."""
    tokenizer = AutoTokenizer.from_pretrained(miniature.folder("qwen2"))
    tokenizer.add_tokens(["\n\n"])
    one = encoded({"messages": [*user("Hello"), *assistant("\nYes.")]}, tokenizer)
    prompt = list(render(tokenizer, user("Hello")).ids)
    assert one.input_ids[: len(prompt)] == prompt
    assert supervised(one, tokenizer) == "\nYes.<|im_end|>"
    whole = tokenizer.apply_chat_template([*user("Hello"), *assistant("\nYes.")])["input_ids"]
    assert whole[: len(prompt)] != prompt


def test_a_template_that_rewrites_the_generation_prompt() -> None:
    """Thinking marks that are gone once there is an answer; the ending is the template's still."""
    template = CHAT_TEMPLATE.replace("'<|assistant|>\n' }}", "'<|assistant|>\n<think>' }}")
    tokenizer = make_tokenizer(template)
    one = encoded({"messages": [*user("Hello"), *assistant("Yes.")]}, tokenizer)
    assert tokenizer.decode(one.input_ids).endswith("<|assistant|>\n<think>Yes.<|end|>")
    assert supervised(one, tokenizer) == "Yes.<|end|>"


def test_a_base_models_template_gets_the_tokenizers_end_of_text() -> None:
    tokenizer = make_tokenizer("{{ bos_token }}" + PLAIN_TEMPLATE)
    for answer in ("Yes.", "Yes. \n\n"):
        one = encoded({"messages": [*user("Hello"), *assistant(answer)]}, tokenizer)
        assert tokenizer.decode(one.input_ids) == "<s>User: Hello\nAssistant: Yes.</s>"
        assert supervised(one, tokenizer) == " Yes.</s>"
    tokenizer.eos_token = None
    one = encoded({"messages": [*user("Hello"), *assistant("Yes.")]}, tokenizer)
    assert supervised(one, tokenizer) == " Yes."


def test_many_turns(named: Named) -> None:
    """Only the last answer is learnt; what was said before is the prompt."""
    name, tokenizer = named
    chat = [*user("One?"), *assistant("Uno."), *user("Two?")]
    if name != "miniature/llama":
        chat = [{"role": "system", "content": "Be brief."}, *chat]
    one = encoded({"messages": [*chat, *assistant("Due.")]}, tokenizer)
    assert one.input_ids[: one.labels.count(IGNORE)] == list(render(tokenizer, chat).ids)
    assert supervised(one, tokenizer) == f"Due.{ENDINGS[name]}"
    assert "Uno." in tokenizer.decode(one.input_ids)


# Forms of a row


def test_all_forms_of_a_row_are_one(named: Named) -> None:
    forms: list[dict[str, Any]] = [
        {"messages": [*user("Open it?"), *assistant("No.")]},
        {"prompt": "Open it?", "completion": "No."},
        {"prompt": user("Open it?"), "completion": assistant("No.")},
        {"prompt": user("Open it?"), "completion": "No."},
        {"prompt": "Open it?", "completion": assistant("No.")},
    ]
    forms.append({"messages": json.dumps(forms[0]["messages"])})  # as in a CSV file
    found = [encoded(form, named[1]) for form in forms]
    assert all(one == found[0] for one in found)
    other = encoded({"prompt": "Open it!", "completion": "No."}, named[1])  # positive control
    assert other != found[0]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_files(suffix: str, tmp_path: Path) -> None:
    import pandas as pd

    rows = [
        {"prompt": "Open it?", "completion": "No.", "label": 1, "risk": 0.75},
        {"prompt": "Clean it?", "completion": "Yes.", "label": 0, "risk": 0},
    ]
    path = tmp_path / f"mine{suffix}"
    if suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    elif suffix == ".csv":
        pd.DataFrame(rows).to_csv(path, index=False)
    else:
        pd.DataFrame(rows).to_parquet(path)
    found = load(str(path))
    assert [(one.text, one.answer, one.label, one.risk) for one in found] == [
        ("Open it?", "No.", 1, 0.75),
        ("Clean it?", "Yes.", 0, 0.0),
    ]
    places = {".jsonl": "line 2", ".csv": "line 3", ".parquet": "row 2"}
    assert found[1].where == f"{path}, {places[suffix]}"
    assert harmful_share(found) == 0.5
    unlabelled = examples([*rows, {"prompt": "x", "completion": "y"}])
    assert harmful_share(unlabelled) != harmful_share(unlabelled), "NaN"
    assert unlabelled[2].label is None and unlabelled[2].risk is None


# What is wrong with a row

GOOD: dict[str, Any] = {"messages": [*user("Open it?"), *assistant("No.")]}
MALFORMED: list[tuple[dict[str, Any], str]] = [
    ({"messages": user("Open it?")}, "field 'messages': the last message is the user's"),
    ({"messages": assistant("No.")}, "field 'messages': a list of messages is needed"),
    ({"messages": []}, "field 'messages': a list of messages is needed"),
    ({"messages": "No."}, "field 'messages': not JSON"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "message 1: the role is 'tool'"),
    ({"messages": [*assistant("a"), *assistant("b")]}, "field 'messages': the last message is the"),
    ({"messages": [*user("Open it?"), *assistant(" \n")]}, "message 2, content: the text is empty"),
    ({"messages": [*user("Open it?"), {"role": "assistant"}]}, "message 2: an object with"),
    ({"prompt": "Open it?"}, "needs 'messages', or 'prompt' and 'completion'; it has 'prompt'"),
    ({"text": "Open it?"}, "it has 'text'"),
    ({"prompt": "", "completion": "No."}, "field 'prompt': the text is empty"),
    ({"prompt": "Open it?", "completion": 3}, "field 'completion'"),
    ({"prompt": "Open it?", "completion": user("No.")}, "one message of the assistant is needed"),
    (
        {"prompt": "Open it?", "completion": [*assistant("a"), *user("b")]},
        "field 'completion': one message of the assistant is needed, these are of: assistant, user",
    ),
    ({"prompt": assistant("a"), "completion": "b"}, "field 'prompt': the last message is the"),
    ({**GOOD, "risk": 1.01}, "field 'risk': the risk is 1.01; it must be a number from 0 to 1"),
    ({**GOOD, "risk": -1e-9}, "field 'risk'"),
    ({**GOOD, "risk": float("nan")}, "field 'risk': the risk is nan"),
    ({**GOOD, "risk": "high"}, "field 'risk': the risk is 'high'"),
]


@pytest.mark.parametrize(("row", "message"), MALFORMED, ids=[m for _, m in MALFORMED])
def test_a_malformed_row_is_named(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        examples([GOOD, row])
    assert "train_dataset, row 1" in str(error.value) and message in str(error.value)
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, [GOOD, row])))
    with pytest.raises(InputError) as error:
        load(str(path))
    assert f"{path}, line 2" in str(error.value) and message in str(error.value)


@pytest.mark.parametrize("risk", [0, 1, 0.5, "0.25", "", None])
def test_a_risk_from_0_to_1_or_none_is_fine(risk: Any) -> None:
    [one] = examples([{**GOOD, "risk": risk}])
    assert one.risk == (None if risk in ("", None) else float(risk))


def test_an_answer_that_does_not_fit_is_shortened_or_named(named: Named) -> None:
    _, tokenizer = named
    row = {"messages": [*user("Hello"), *assistant("one two three four five")]}
    whole = encoded(row, tokenizer)
    n_prompt = whole.labels.count(IGNORE)
    for length in range(n_prompt + 1, len(whole.input_ids) + 2):
        one = encoded(row, tokenizer, max_length=length)
        assert one.input_ids == whole.input_ids[:length] and one.labels == whole.labels[:length]
        assert one.shortened == (length < len(whole.input_ids))
    for length in (n_prompt, 1):
        with pytest.raises(InputError, match=r"row 0: the prompt takes .* cuts the whole answer"):
            encoded(row, tokenizer, max_length=length)


def test_a_template_that_refuses_is_told_with_the_row() -> None:
    refusing = "{% if messages|length > 1 %}{{ raise_exception('no answers') }}{% endif %}"
    with pytest.raises(InputError, match=r"row 0: the chat template .* no answers"):
        encoded(GOOD, make_tokenizer(refusing + CHAT_TEMPLATE))
    with pytest.raises(InputError, match=r"row 0: .* has no chat template"):
        encoded(GOOD, make_tokenizer(None))
    deaf = CHAT_TEMPLATE.replace(
        "message['content']", "('' if message['role'] == 'assistant' else message['content'])"
    )
    with pytest.raises(InputError, match="row 0: the answer has no token that could be learnt"):
        encoded(GOOD, make_tokenizer(deaf))
