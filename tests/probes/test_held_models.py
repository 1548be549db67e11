"""A model that the person holds already, however it is wrapped; and models held elsewhere."""

import importlib
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import disk_offload
from cloudpickle import list_registry_pickle_by_value
from transformers import (
    PreTrainedModel,
)

from probes.backends import library, open_backend
from probes.errors import InputError
from probes.models import load, weights_fingerprint
from tests.conftest import make_model, make_tokenizer
from tests.probes.test_backends import ALL_SITES, BACKENDS, gap, make_batch

# A model that the person holds already


def hold(kind: str, model: PreTrainedModel) -> Any:
    if kind == "transformers":
        return model
    if kind == "decoder alone":
        return model.model
    if kind == "TransformerBridge":
        from transformer_lens.model_bridge.sources import build_bridge_from_module

        return build_bridge_from_module(model, type(model).__name__, hf_config=model.config)
    import nnsight

    if kind == "NNsight":
        return nnsight.NNsight(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nnsight prefers TransformersModel by now
        return nnsight.LanguageModel(model, tokenizer=make_tokenizer())


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("transformers", "transformers"),
        ("decoder alone", "transformers"),
        ("TransformerBridge", "transformer-lens"),
        ("NNsight", "nnsight"),
        ("LanguageModel", "nnsight"),
    ],
)
def test_a_model_that_is_held_is_recognised(kind: str, name: str, family: str) -> None:
    reference = open_backend(make_model(family)).capture(*make_batch("left"), ALL_SITES)
    backend = open_backend(hold(kind, make_model(family)))
    assert backend.name == name
    assert (backend.n_layers, backend.d_model) == (3, 32)
    for _ in range(2):
        assert gap(backend.capture(*make_batch("left"), ALL_SITES), reference) < 1e-4


def test_a_wrapped_model_is_run_by_its_own_library_only() -> None:
    for kind in ("TransformerBridge", "LanguageModel"):
        held = hold(kind, make_model("llama"))
        for name in BACKENDS:
            if name != library(held):
                with pytest.raises(InputError, match="give the transformers model itself"):
                    open_backend(held, name)


def test_an_nnsight_model_whose_weights_are_not_loaded_yet(
    tiny_folder: Callable[..., Any],
) -> None:
    from nnsight import TransformersModel

    held = TransformersModel(
        str(tiny_folder("qwen2")), task="text-generation", tokenizer=make_tokenizer()
    )
    assert not held.dispatched
    read = open_backend(held).capture(*make_batch(), ALL_SITES)
    assert gap(read, open_backend(make_model("qwen2")).capture(*make_batch(), ALL_SITES)) < 1e-4


def test_weights_that_are_offloaded_to_disk(tmp_path: Path, family: str) -> None:
    model = make_model(family)
    reference = open_backend(model).capture(*make_batch("left"), ALL_SITES)
    fingerprint = weights_fingerprint(model)
    disk_offload(model, str(tmp_path), execution_device=torch.device("cpu"))
    assert all(weight.is_meta for weight in model.parameters())
    assert gap(open_backend(model).capture(*make_batch("left"), ALL_SITES), reference) < 1e-4
    assert weights_fingerprint(model) == fingerprint
    for name in BACKENDS[1:]:
        with pytest.raises(InputError, match=f"offloaded .* which {name} cannot run"):
            open_backend(model, name)


def test_a_model_without_weights_runs_nowhere_here(tiny_folder: Callable[..., Path]) -> None:
    shape = load(str(tiny_folder("llama")), weights=False).model
    with pytest.raises(InputError, match="were not loaded: it can only be run remotely"):
        open_backend(shape).capture(*make_batch(), ALL_SITES)


def test_the_libraries_are_imported_only_when_used() -> None:
    code = (
        "import sys, probes.capture, probes.models\n"
        "from tests.conftest import make_model, make_tokenizer\n"
        "probes.capture.capture(make_model('llama'), make_tokenizer(), ['hi'])\n"
        "print([n for n in ('transformer_lens', 'nnsight') if n in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "[]"


# Remote execution


def test_a_remote_run_is_rehearsed_without_local_weights(
    tiny_folder: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """nnsight's own rehearsal: serialised as for the server, with local modules out of reach.

    What it tells cloudpickle for that does not reach joblib's processes.
    """
    folder = tiny_folder("llama")
    chat = load(str(folder), weights=False)
    assert all(weight.is_meta for weight in chat.model.parameters())
    backend = open_backend(chat.model, "nnsight", remote="local")
    here = open_backend(make_model("llama")).capture(*make_batch(), ALL_SITES)
    before = list_registry_pickle_by_value()
    monkeypatch.setattr("nnsight.ndif._PULLED_ENV", False)
    for _ in range(2):
        assert gap(backend.capture(*make_batch(), ALL_SITES), here) < 1e-4
    assert importlib.import_module("nnsight.ndif")._PULLED_ENV  # it did register this package
    assert list_registry_pickle_by_value() == before


def test_remote_is_passed_on_and_its_failure_is_told(
    tiny_folder: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = load(str(tiny_folder("llama")), weights=False)
    backend = open_backend(chat.model, "nnsight", remote=True, revision="v2")
    assert backend.wrapped.revision == "v2"
    asked: list[object] = []

    def refuse(remote: object, *_: object) -> None:
        asked.append(remote)
        raise ConnectionError("no key")

    monkeypatch.setattr(backend.wrapped, "_remote_backend", refuse)
    with pytest.raises(InputError, match="NDIF did not run the model: no key"):
        backend.capture(*make_batch(), ALL_SITES)
    assert asked == [True]


def test_remote_is_refused_where_it_cannot_be() -> None:
    with pytest.raises(InputError, match="remote execution is nnsight's"):
        open_backend(make_model("llama"), remote=True)
    with pytest.raises(InputError, match="no name that NDIF could know"):
        open_backend(hold("NNsight", make_model("llama")), remote=True)
