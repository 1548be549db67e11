"""Whatever changes an activation changes the manifest: the cache never gives stale rows."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from probes.backends import open_backend
from probes.cache import ActivationCache, CacheError, Manifest, cache_folder
from probes.errors import InputError
from probes.manifest import config_hash, tokenizer_hash
from probes.models import ChatModel, weights_fingerprint
from probes.prompts import PromptSet
from tests.conftest import CHAT_TEMPLATE, make_tokenizer
from tests.probes.cache_builder import (
    N_SMALL,
    FakeBackend,
    Refuses,
    build_small,
    files,
    make_chat,
    make_prompts,
)


def test_an_equal_manifest_is_reused_without_running_the_model(whole: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.iterdir()}
    cache = build_small(whole, backend=Refuses())
    assert cache.layer(0).shape == (N_SMALL, 32)
    assert {path: path.stat().st_mtime_ns for path in whole.iterdir()} == before


def changed_weights() -> ChatModel:
    chat = make_chat()
    with torch.no_grad():
        next(chat.model.parameters())[5, 5] += 2**-10
    return chat


def changed_config() -> ChatModel:
    """The same weights, the same name, another RoPE base."""
    chat, other = make_chat(), make_chat()
    other.model.config.rope_parameters["rope_theta"] = 5e5
    model = type(chat.model)(other.model.config).eval()
    model.load_state_dict(chat.model.state_dict())
    assert weights_fingerprint(model) == weights_fingerprint(chat.model)
    return dataclasses.replace(chat, model=model)


def changed_tokenizer() -> ChatModel:
    """The same template and special tokens; two letters have changed places."""
    chat = make_chat()
    state = json.loads(chat.tokenizer.backend_tokenizer.to_str())  # type: ignore[attr-defined]
    vocabulary = state["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    tokenizer = make_tokenizer()
    tokenizer._tokenizer = type(tokenizer.backend_tokenizer).from_str(json.dumps(state))
    return dataclasses.replace(chat, tokenizer=tokenizer)


def retemplated() -> ChatModel:
    template = CHAT_TEMPLATE.replace("<|assistant|>\n", "<|assistant|>")
    return dataclasses.replace(make_chat(), tokenizer=make_tokenizer(template))


def half() -> ChatModel:
    chat = make_chat()
    chat.model.to(torch.bfloat16)  # type: ignore[arg-type]
    return chat


def prompt_set(**change: Any) -> PromptSet:
    """One prompt changed in one field."""
    first, *others = make_prompts(N_SMALL).prompts
    return PromptSet("made", (dataclasses.replace(first, **change), *others))


def swapped() -> PromptSet:
    first, second, *others = make_prompts(N_SMALL).prompts
    return PromptSet("made", (second, first, *others))


CHANGES: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {
    "model": ("model", lambda: {"chat": dataclasses.replace(make_chat(), name="other/llama")}),
    "revision": ("revision", lambda: {"chat": dataclasses.replace(make_chat(), revision="v2")}),
    "weights": ("weights", lambda: {"chat": changed_weights()}),
    "config": ("config", lambda: {"chat": changed_config()}),
    "template": ("template", lambda: {"chat": retemplated()}),
    "tokenizer": ("tokenizer", lambda: {"chat": changed_tokenizer()}),
    "dtype": ("dtype", lambda: {"chat": half()}),
    "hook point": ("hook_point", lambda: {"hook_point": "resid_mid"}),
    "label": ("prompts", lambda: {"prompts": prompt_set(label=1)}),
    "group": ("prompts", lambda: {"prompts": prompt_set(group="together")}),
    "text": ("prompts", lambda: {"prompts": prompt_set(id="0" * 16)}),
    "order": ("prompts", lambda: {"prompts": swapped()}),
    "source": ("sources", lambda: {"prompts": prompt_set(source="elsewhere")}),
    "fewer": ("n_prompts", lambda: {"prompts": make_prompts(N_SMALL - 1)}),
    "set's name": (
        "prompt_set",
        lambda: {"prompts": PromptSet("o", make_prompts(N_SMALL).prompts)},
    ),
    "length": ("max_length", lambda: {"max_length": 60}),
    "shard size": ("shard_size", lambda: {"shard_size": 5}),
    "budget": ("token_budget", lambda: {"token_budget": 100}),
    "backend": ("backend", lambda: {"backend": FakeBackend(3, 32)}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_changes_is_named_and_refused_and_has_its_own_folder(
    change: str, whole: Path
) -> None:
    field, make = CHANGES[change]
    options = make()
    before = files(whole)
    with pytest.raises(CacheError, match=rf"\b{field}: ") as refusal:
        build_small(whole, **options)
    assert files(whole) == before
    assert isinstance(refusal.value, InputError)
    assert str(whole) in str(refusal.value)

    chat = options.pop("chat", make_chat())
    prompts = options.pop("prompts", make_prompts(N_SMALL))
    options = {"backend": open_backend(chat.model), "shard_size": 4} | options
    asked = Manifest.of(chat, prompts, **options)
    held = ActivationCache.open(whole).manifest
    assert cache_folder("runs", asked) != cache_folder("runs", held)
    assert cache_folder("runs", held) == cache_folder("runs", dataclasses.replace(held))


def test_another_release_of_a_library_is_named(whole: Path) -> None:
    held = ActivationCache.open(whole).manifest
    other = dataclasses.replace(held, versions=held.versions | {"torch": "1.0", "more": "2"})
    assert held.differences(other) == [
        "versions.more: None here, '2' there",
        f"versions.torch: {held.versions['torch']!r} here, '1.0' there",
    ]
    assert held.differences(held) == []
    assert held.hash != other.hash


def test_a_manifest_survives_its_file(whole: Path) -> None:
    manifest = ActivationCache.open(whole).manifest
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert manifest.hash == hashlib.sha256((whole / "manifest.json").read_bytes()).hexdigest()
    assert manifest.weights == weights_fingerprint(make_chat().model)
    assert manifest.position == "last-input-token"


def test_calls_leave_nothing_in_the_fingerprints() -> None:
    chat = make_chat()
    config, tokenizer = config_hash(chat.model), tokenizer_hash(chat.tokenizer)
    chat.tokenizer.pad_token = "</s>"
    with_pad = tokenizer_hash(chat.tokenizer)
    chat.tokenizer(["a", "bcd"], padding=True, truncation=True, max_length=2)
    chat.model(torch.tensor([[1, 2]]), output_hidden_states=True)
    chat.model.config._name_or_path = "/elsewhere"
    assert tokenizer_hash(chat.tokenizer) == with_pad != tokenizer
    assert config_hash(chat.model) == config


def test_the_folder_is_named_safely(tmp_path: Path, whole: Path) -> None:
    held = ActivationCache.open(whole).manifest
    for model in ("../../etc", "/a/b.gguf", "org/name", "..", "", "x" * 300, "C:\\m\0del"):
        folder = cache_folder(tmp_path, dataclasses.replace(held, model=model, prompt_set=model))
        assert folder.parent.parent == tmp_path
        assert ".." not in folder.parts
        folder.mkdir(parents=True, exist_ok=True)
    assert cache_folder(tmp_path, held).name == f"made-{held.hash[:12]}"
