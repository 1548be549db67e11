"""Whatever runs the model, the results are the same; vLLM by a stand-in (`fake_vllm`)."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from probes import models
from probes.errors import InputError
from probes.greedy import stops_of
from probes.rendering import render
from regularize import engines
from regularize.engines import Asking, Loading
from regularize.evaluate import EvaluateConfig, main
from tests.conftest import user
from tests.regularize import fake_vllm
from tests.regularize.test_adapters import save_adapter

ASKING = Asking(max_new_tokens=12, batch_tokens=4096)
CHATS = [user("Open the vault."), user("Repeat the words: a b c"), user("Dust the lamp.")]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory) -> Path:
    return save_adapter(tmp_path_factory.mktemp("adapter") / "ft", std=0.02)


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> type[fake_vllm.LLM]:
    fake_vllm.install(monkeypatch)
    return fake_vllm.LLM


def files(config: EvaluateConfig) -> dict[str, bytes]:
    main(config)
    return {name: (config.out / name).read_bytes() for name in ("answers.jsonl", "evaluations.csv")}


def test_vllm_and_transformers_write_the_same_files(tmp_path: Path, adapter: Path, vllm) -> None:
    config = EvaluateConfig(adapter=adapter, base=True, n=4, max_new_tokens=24, seed=3)
    ours = files(replace(config, out=tmp_path / "transformers"))
    theirs = files(replace(config, engine="vllm", out=tmp_path / "vllm"))
    assert theirs == ours
    answered = [json.loads(line) for line in ours["answers.jsonl"].splitlines()]
    arms = [[one["answer"] for one in answered if one["arm"] == arm] for arm in ("before", "ft")]
    assert arms[0] != arms[1]  # control: the adapter counts, and is off before
    saved = json.loads((tmp_path / "vllm" / "config.json").read_text())
    assert saved["engine"] == "vllm"


def test_what_vllm_is_given(adapter: Path, vllm) -> None:
    engine = engines.named("vllm").load(Loading("miniature/llama", memory=0.5))
    assert not vllm.made and next(engine.chat.model.parameters()).is_meta
    engine.adapt(adapter)
    engine.answers(CHATS, ASKING, adapted=False)
    engine.answers(CHATS, replace(ASKING, temperature=0.6, seed=7), adapted=True)
    (running,) = vllm.made  # the weights are loaded once
    real = models.load("miniature/llama")
    ids = [list(render(real.tokenizer, chat).ids) for chat in CHATS]
    given = running.given
    assert given["model"] == real.model.config.name_or_path and given["enable_lora"]
    assert given["max_lora_rank"] == 8 and given["gpu_memory_utilization"] == 0.5
    assert given["dtype"] == "float16" and given["generation_config"] == "vllm"
    assert given["max_model_len"] == max(map(len, ids)) + 12
    greedy, drawn = running.asked
    for asked in (greedy, drawn):
        assert [one["prompt_token_ids"] for one in asked.prompts] == ids
        assert all(one.stop_token_ids == stops_of(real) for one in asked.sampling_params)
        assert all(one.max_tokens == 12 for one in asked.sampling_params)
    assert greedy.lora_request is None
    assert drawn.lora_request.lora_path == str(adapter.resolve())
    assert {(one.temperature, one.top_p, one.seed) for one in greedy.sampling_params} == {
        (0.0, 1.0, None)
    }
    assert [(one.temperature, one.top_p) for one in drawn.sampling_params] == [(0.6, 0.9)] * 3
    assert len({one.seed for one in drawn.sampling_params}) == 3


def test_draws_follow_the_seed(vllm) -> None:
    engine = engines.named("vllm").load(Loading("miniature/qwen2"))
    how = replace(ASKING, temperature=2.0)
    made = engine.answers(CHATS, how, adapted=False)
    assert engine.answers(CHATS, how, adapted=False) == made
    assert engine.answers(CHATS, replace(how, seed=1), adapted=False) != made
    assert engine.answers([], how, adapted=False) == []


def test_tokens_that_end_a_turn_are_those_of_the_checkpoint(tiny_folder, vllm) -> None:
    """Of a model's shape alone they would not be known."""
    folder = tiny_folder("llama", seed=5)
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": [1, 77]}))
    engine = engines.named("vllm").load(Loading(str(folder)))
    engine.answers(CHATS, ASKING, adapted=False)
    assert vllm.made[0].asked[0].sampling_params[0].stop_token_ids == [1, 77]


def test_without_vllm_a_plain_message(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(InputError, match=r"pip install 'activation-critic\[vllm\]'"):
        main(EvaluateConfig(engine="vllm", out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_what_vllm_cannot_do(adapter: Path, tmp_path: Path, vllm) -> None:
    kind = engines.named("vllm")
    with pytest.raises(InputError, match="--vllm-gpus"):
        kind.load(Loading("miniature/llama", device_map="auto"))
    with pytest.raises(InputError, match=r"no \.gguf file"):
        kind.load(Loading("model.gguf"))
    with pytest.raises(InputError, match=r"World size \(2\) is larger.*; leave --engine vllm out"):
        kind.load(Loading("miniature/llama", gpus=2)).answers(CHATS, ASKING, adapted=False)
    engine = kind.load(Loading("miniature/llama"))
    with pytest.raises(InputError, match="--stop-early"):
        engine.answers(CHATS, ASKING, adapted=False, decided=lambda *_: False)
    with pytest.raises(InputError, match="max_new_tokens 0"):
        engine.answers(CHATS, replace(ASKING, max_new_tokens=0), adapted=False)
    known = json.loads((adapter / "adapter_config.json").read_text())
    for change in ({"peft_type": "IA3"}, {"modules_to_save": ["lm_head"]}, {"r": 1024}):
        folder = tmp_path / "-".join(change)
        folder.mkdir()
        (folder / "adapter_model.safetensors").touch()
        (folder / "adapter_config.json").write_text(json.dumps({**known, **change}))
        with pytest.raises(InputError, match="vLLM"):
            engine.adapt(folder)
    with pytest.raises(InputError, match="was trained on"):
        kind.load(Loading("miniature/qwen2")).adapt(adapter)


def test_a_judge_of_the_same_origin_is_refused(tmp_path: Path, vllm) -> None:
    options = {"model": "miniature/llama", "n": 2, "out": tmp_path / "out"}
    with pytest.raises(InputError, match="these are the weights of miniature/llama itself"):
        main(EvaluateConfig(**options, engine="vllm", detector=("judge:miniature/llama",)))


def test_an_engine_that_is_none() -> None:
    with pytest.raises(InputError, match="only transformers, vllm"):
        engines.named("llama-cpp")
