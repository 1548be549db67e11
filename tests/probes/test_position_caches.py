"""Positions as caches keep them, filled by one run of the model, and as frozen probes read them."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from probes.backends import open_backend
from probes.cache import ActivationCache, cache_folder
from probes.errors import InputError
from probes.hooks import POSITIONS, Position
from probes.manifest import Manifest
from probes.models import ChatModel
from tests.conftest import make_tokenizer, user
from tests.probes.cache_builder import Refuses, files, make_chat, make_prompts
from tests.probes.test_backends import gap
from tests.probes.test_position_capture import by_hand

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.probes.test_position_caches"])


def build_together(
    root: Path, positions: Sequence[Position] = POSITIONS, n_prompts: int = 10, **change: Any
) -> dict[Position, ActivationCache]:
    torch.set_num_threads(1)
    chat = make_chat()
    prompts = make_prompts(n_prompts)
    described = {"backend": open_backend(chat.model), "shard_size": 4, "token_budget": 256}
    described |= change
    manifests = [Manifest.of(chat, prompts, position=one, **described) for one in positions]
    folders = {root / manifest.position: manifest for manifest in manifests}
    caches = ActivationCache.build_each(folders, chat, prompts, backend=described["backend"])
    return dict(zip(positions, caches, strict=True))


def build_alone(folder: Path, position: Position, n_prompts: int = 10) -> ActivationCache:
    chat = make_chat()
    options = {"backend": open_backend(chat.model), "shard_size": 4, "token_budget": 256}
    prompts = make_prompts(n_prompts)
    return ActivationCache.build(folder, chat, prompts, position=position, **options)


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("together")
    build_together(root)
    return root


def contents(root: Path) -> dict[str, dict[str, bytes]]:
    return {folder.name: files(folder) for folder in sorted(root.iterdir())}


def test_caches_built_together_are_those_built_alone(together: Path, tmp_path: Path) -> None:
    chat = make_chat()
    for position in POSITIONS:
        cache = build_alone(tmp_path / position, position)
        assert cache.manifest.position == position
        assert contents(tmp_path)[position] == contents(together)[position]
        texts = [prompt.text for prompt in make_prompts(10).prompts]
        for i, text in enumerate(texts):
            wanted = by_hand(chat.model, chat.tokenizer, text, position)
            for layer in range(3):
                assert gap(cache.layer(layer)[i], wanted[layer]) < 1e-4
    # Positive control: a change of the last bit would be seen, and no two are alike.
    shards = {of["shard-00000.safetensors"] for of in contents(together).values()}
    assert len(shards) == 4
    assert build_alone(tmp_path / "again", POSITIONS[0]).manifest.position == "last-input-token"


def test_the_model_runs_once_for_all_positions(together: Path, tmp_path: Path) -> None:
    class Once(Refuses):
        """Counts the prompts that it is given."""

        def __init__(self) -> None:
            super().__init__()
            self.real, self.n = open_backend(make_chat().model), 0

        def capture(self, ids: Tensor, *arguments: Any) -> Tensor:
            self.n += len(ids)
            return self.real.capture(ids, *arguments)

    backend = Once()
    build_together(tmp_path, backend=backend)
    assert backend.n == 10
    assert contents(tmp_path) == contents(together)
    # What is there is not computed again; what one position lacks is computed for it alone.
    build_together(tmp_path, backend=Refuses())
    (tmp_path / "content-mean" / "shard-00001.safetensors").unlink()
    (tmp_path / "post-instruction" / "shard-00002.safetensors").unlink()
    backend = Once()
    build_together(tmp_path, backend=backend)
    assert backend.n == 4 + 2
    assert contents(tmp_path) == contents(together)


def test_caches_of_other_things_are_not_built_together(tmp_path: Path) -> None:
    chat, prompts = make_chat(), make_prompts(10)
    backend = open_backend(chat.model)
    first = Manifest.of(chat, prompts, backend=backend)
    other = Manifest.of(chat, prompts, backend=backend, position="content-mean", shard_size=3)
    folders = {cache_folder(tmp_path, one): one for one in (first, other)}
    assert len(folders) == 2
    with pytest.raises(InputError, match="differ in their position alone"):
        ActivationCache.build_each(folders, chat, prompts, backend=backend)
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="no position"):
        Manifest.of(chat, prompts, backend=backend, position="middle")  # type: ignore[arg-type]


def build_until(root: Path, event: int) -> None:
    """Die by SIGKILL just before the process touches the folder for the n-th time, from 0."""
    left = event

    def count(name: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if name in ("open", "os.rename", "os.mkdir") and str(arguments[0]).startswith(str(root)):
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

    sys.addaudithook(count)
    build_together(root, POSITIONS[1:3], n_prompts=6)


def test_killed_at_any_moment_all_end_byte_identical(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    build_together(whole, POSITIONS[1:3], n_prompts=6)
    kills, event, exitcode, apart = 0, 0, -signal.SIGKILL, 0
    while exitcode == -signal.SIGKILL:
        root = tmp_path / f"killed-{event}"
        process = PROCESSES.Process(target=build_until, args=(root, event))
        process.start()
        process.join(60)
        exitcode = process.exitcode
        kills += exitcode == -signal.SIGKILL
        left = [len(list(root.glob(f"{one}/shard-*"))) for one in POSITIONS[1:3]]
        apart += left[0] != left[1]
        build_together(root, POSITIONS[1:3], n_prompts=6)
        assert contents(root) == contents(whole), event
        event += 3
    assert exitcode == 0
    assert kills > 8
    assert apart  # some were killed when one position had a shard that the other lacked


def test_the_index_shows_the_text_that_was_read(together: Path) -> None:
    texts = [prompt.text for prompt in make_prompts(10).prompts]
    shown = {position: ActivationCache.open(together / position).index for position in POSITIONS}
    assert list(shown["content-mean"]["token_text"]) == texts
    assert set(shown["last-content-token"]["token_text"]) == {"."}
    assert set(shown["post-instruction"]["token_text"]) == {"<|end|>\n<|assistant|>\n"}
    assert set(shown["last-input-token"]["token_text"]) == {"\n"}
    for position in ("last-content-token", "content-mean"):
        assert set(shown[position]["token_id"]) == set(make_tokenizer()(".").input_ids[1:])


def test_a_prompt_without_words_is_named_before_the_model_runs(tmp_path: Path) -> None:
    prompts = make_prompts(4)
    empty = replace(prompts.prompts[0], messages=tuple(user("")))  # type: ignore[arg-type]
    rows = replace(prompts, prompts=(*prompts.prompts[1:], empty))
    with pytest.raises(InputError, match="last user turn is empty"):
        ActivationCache.build(
            tmp_path / "a", make_chat(), rows, backend=Refuses(), position="content-mean"
        )
    chat = make_chat()
    backend = open_backend(chat.model)
    ActivationCache.build(tmp_path / "b", chat, rows, backend=backend, position="post-instruction")


# Frozen probes


@pytest.mark.parametrize("position", POSITIONS)
def test_a_frozen_probe_reads_where_it_was_fitted(position: Position, tmp_path: Path) -> None:
    from probes.frozen import FrozenProbe
    from probes.probe import Folds, cross_validate, fit

    prompts = make_prompts(24)
    chat: ChatModel = make_chat()
    options: dict[str, Any] = {"backend": open_backend(chat.model)}
    caches = {
        one: ActivationCache.build(tmp_path / one, chat, prompts, position=one, **options)
        for one in (position, POSITIONS[POSITIONS.index(position) - 1])
    }
    cache = caches.pop(position)
    folds = Folds.of(prompts.labels, prompts.groups, folds=3)
    of: dict[str, Any] = {"readout": "layer", "layers": (1,), "Cs": (1.0,)}
    with pytest.warns(RuntimeWarning, match="harmless scores"):
        probe = FrozenProbe.of(
            fit(cache, prompts.labels, folds, **of),
            cache.manifest,
            prompts,
            cross_validate(cache, prompts.labels, folds, **of),
        )
    probe.save_pretrained(tmp_path / "probe")
    again = FrozenProbe.from_pretrained(tmp_path / "probe")
    assert again.config.position == position
    live = again.risk(chat.model, chat.tokenizer, prompts.texts)
    torch.testing.assert_close(live, again.risk_of(cache), atol=1e-5, rtol=0)
    ((name, other),) = caches.items()
    with pytest.raises(InputError, match=f"position {name} instead of {position}"):
        again.risk_of(other)
    unlike = again.risk_of(other, allow_mismatch=True)
    assert float((unlike - live).abs().max()) > 1e-3  # positive control
    with pytest.raises(InputError, match="'middle' is no position"):
        replace(again.config, position="middle")  # type: ignore[arg-type]
    if "content" in position:
        with pytest.raises(InputError, match="last user turn is empty"):
            again.risk(chat.model, chat.tokenizer, ["open", ""])
