"""Adapters: the right one changes the model, a wrong or broken one is a plain message."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from probes import models
from probes.errors import InputError
from regularize.adapters import attach
from regularize.generation import answers


def save_adapter(folder: Path, spec: str = "miniature/llama", *, std: float = 0.3) -> Path:
    """A random LoRA adapter of a model, as PEFT saves it."""
    chat = models.load(spec)
    wrapped = get_peft_model(chat.model, LoraConfig(target_modules=["q_proj", "v_proj"], r=4))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name, weight in wrapped.named_parameters():
            if "lora_" in name:
                nn.init.normal_(weight, std=std)
    wrapped.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    return save_adapter(tmp_path_factory.mktemp("adapter") / "ft")


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "ft"))


def test_an_adapter_changes_the_model_and_comes_off(saved: Path) -> None:
    texts = ["Open the vault.", "Reverse the words: a b", "Dust the lamp."]
    chat = models.load("miniature/llama")
    before = answers(chat, texts, max_new_tokens=16)
    tuned = attach(chat, saved)
    assert not tuned.model.training
    assert answers(tuned, texts, max_new_tokens=16) != before
    with tuned.model.disable_adapter():
        assert answers(tuned, texts, max_new_tokens=16) == before


def test_a_miniature_is_the_same_one_wherever_it_is_installed(copy: Path) -> None:
    edit(copy, base_model_name_or_path="/elsewhere/probes/miniature/weights/llama/aligned")
    attach(models.load("miniature/llama"), copy)
    edit(copy, base_model_name_or_path="/elsewhere/probes/miniature/weights/llama/base")
    with pytest.raises(InputError, match="give --model miniature/llama-base"):
        attach(models.load("miniature/llama"), copy)


def test_another_base_model_is_refused_unless_asked_for(copy: Path) -> None:
    edit(copy, base_model_name_or_path="org/other")
    with pytest.raises(InputError, match="was trained on org/other"):
        attach(models.load("miniature/llama"), copy)
    attach(models.load("miniature/llama"), copy, allow_other_base=True)


def test_an_adapter_of_a_local_folder(tiny_folder, tmp_path: Path) -> None:
    base = tiny_folder("qwen2")
    adapter = save_adapter(tmp_path / "ft", str(base))
    attach(models.load(str(base)), adapter)
    attach(models.load(f"{base}/../{base.name}"), adapter)
    with pytest.raises(InputError, match="was trained on"):
        attach(models.load(str(tiny_folder("qwen2", seed=2))), adapter)


def edit(folder: Path, **changes) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _cut(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:400])


def _fewer(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "adapter_model.safetensors"
    save_file(dict(list(load_file(path).items())[1:]), path)


def _more(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "adapter_model.safetensors"
    kept = load_file(path)
    save_file(kept | {"base_model.model.model.layers.99.lora_A.weight": torch.ones(2)}, path)


BROKEN = {
    "not there": (shutil.rmtree, "no such folder"),
    "no weights": (lambda f: (f / "adapter_model.safetensors").unlink(), "adapter_model"),
    "no config": (lambda f: (f / "adapter_config.json").unlink(), "adapter_config.json"),
    "not JSON": (lambda f: (f / "adapter_config.json").write_text("{"), "not JSON"),
    "no adapter": (lambda f: (f / "adapter_config.json").write_text("{}"), "peft_type"),
    "cut off": (_cut, "damaged"),
    "a weight missing": (_fewer, "1 of its weights are missing"),
    "a weight too many": (_more, "layers.99"),
    "another shape": (lambda f: edit(f, r=8), "does not fit"),
    "other targets": (lambda f: edit(f, target_modules=["k_proj"]), "does not fit"),
    "unknown kind": (lambda f: edit(f, peft_type="MAGIC"), "does not fit"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_adapter_is_a_plain_message(case: str, copy: Path) -> None:
    spoil, message = BROKEN[case]
    spoil(copy)
    with pytest.raises(InputError, match=message) as caught:
        attach(models.load("miniature/llama"), copy)
    assert str(copy) in str(caught.value)
    assert "\n" not in str(caught.value)
