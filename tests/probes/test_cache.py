"""The cache holds the model's own activations, and tells which token of each prompt was read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from probes.cache import ActivationCache
from probes.hooks import HOOK_POINTS, Site
from probes.models import ChatModel
from probes.prompts import PromptSet
from probes.rendering import render
from probes.shards import Shards
from tests.conftest import make_tokenizer
from tests.probes.cache_builder import (
    N_SMALL,
    FakeBackend,
    build_small,
    make_chat,
    make_prompts,
)


def one_by_one(chat: ChatModel, prompts: PromptSet) -> Tensor:
    """Oracle: each prompt alone, unpadded, through transformers' own hidden states, last token."""
    states: list[Tensor] = []
    model: Any = chat.model
    last_block: list[Tensor] = []
    hook = model.model.layers[-1].register_forward_hook(lambda *a: last_block.append(a[-1]))
    try:
        for messages in prompts.messages:
            ids = torch.tensor([render(chat.tokenizer, messages).ids])
            with torch.no_grad():
                hidden = model(ids, output_hidden_states=True).hidden_states
            # transformers' own last entry is after the final norm
            states.append(torch.stack([h[0, -1] for h in (*hidden[:-1], last_block.pop())]))
    finally:
        hook.remove()
    return torch.stack(states)


def test_holds_what_the_model_computes_for_each_prompt_alone(whole: Path) -> None:
    expected = one_by_one(
        make_chat(), make_prompts(N_SMALL)
    )  # [prompt, embedding and layers, d_model]
    cache = ActivationCache.open(whole)
    torch.testing.assert_close(cache.embedding(), expected[:, 0], rtol=1e-4, atol=1e-5)
    for layer in range(cache.n_layers):
        torch.testing.assert_close(cache.layer(layer), expected[:, layer + 1], rtol=1e-4, atol=1e-5)
    # Positive control: neither prompts nor layers look alike at that tolerance.
    assert not torch.allclose(cache.layer(1), expected[:, 3], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(cache.layer(1)[0], expected[1, 2], rtol=1e-4, atol=1e-5)


def test_blocks_are_the_layers_shard_by_shard(whole: Path) -> None:
    cache = ActivationCache.open(whole)
    blocks = list(cache.blocks([2, 0]))
    assert [block.rows for block in blocks] == [slice(0, 4), slice(4, 8), slice(8, 10)]
    together = torch.cat([block.activations for block in blocks])
    assert torch.equal(together, torch.stack([cache.layer(2), cache.layer(0)], dim=1))
    for layer in (-1, 3):
        with pytest.raises(IndexError, match=f"layer {layer}"):
            cache.layer(layer)


def test_the_index_tells_which_token_was_read(whole: Path) -> None:
    prompts, tokenizer = make_prompts(N_SMALL), make_tokenizer()
    index = ActivationCache.open(whole).index
    rendered = [render(tokenizer, messages) for messages in prompts.messages]
    assert list(index["id"]) == [prompt.id for prompt in prompts.prompts]
    assert np.array_equal(index["label"], prompts.labels)
    assert list(index["group"]) == list(prompts.groups)
    assert set(index["source"]) == {"made"}
    assert list(zip(index["shard"], index["row"], strict=True)) == [
        divmod(i, 4) for i in range(N_SMALL)
    ]
    assert list(index["n_tokens"]) == [len(row.ids) for row in rendered]
    assert list(index["token_id"]) == [row.ids[-1] for row in rendered]
    assert set(index["token_text"]) == {"\n"}  # the template ends `<|assistant|>\n`
    assert not index["truncated"].any()


def test_a_prompt_that_is_cut_is_marked(tmp_path: Path) -> None:
    cache = build_small(tmp_path / "cut", max_length=60)
    longer = ActivationCache.open(build_small(tmp_path / "whole").directory).index["n_tokens"] > 60
    assert 0 < longer.sum() < N_SMALL
    assert list(cache.index["truncated"]) == list(longer)
    assert cache.index["n_tokens"].max() == 60


@pytest.mark.parametrize("point", HOOK_POINTS)
def test_each_site_is_stored_once_with_the_embedding(point: Any, tmp_path: Path) -> None:
    cache = build_small(tmp_path, hook_point=point)
    with safe_open(tmp_path / "shard-00000.safetensors", "pt") as file:
        names = set(file.keys())
    assert names == {f"blocks.{i}.hook_{point}" for i in range(3)} | {"blocks.0.hook_resid_pre"}
    assert (point == "resid_pre") == torch.equal(cache.layer(0), cache.embedding())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_stored_as_it_is(dtype: torch.dtype, tmp_path: Path) -> None:
    chat = make_chat()
    chat.model.to(dtype)  # type: ignore[arg-type]
    cache = build_small(tmp_path, chat)
    assert cache.layer(2).dtype == cache.embedding().dtype == dtype
    block = next(cache.blocks([0, 2])).activations
    assert block.dtype == dtype
    assert cache.manifest.dtype == str(dtype).split(".")[1]


def test_costs_d_model_numbers_a_layer_and_prompt_and_nothing_is_pickled(tmp_path: Path) -> None:
    prompts = make_prompts(64)
    backend = FakeBackend(n_layers=5, d_model=256, dtype=torch.bfloat16)
    cache = build_small(tmp_path, prompts=prompts, backend=backend, shard_size=32)
    size = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    numbers = 64 * (5 + 1) * 256 * 2
    assert numbers < size < numbers * 1.03
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "index.parquet",
        "manifest.json",
        "shard-00000.safetensors",
        "shard-00001.safetensors",
    ]
    assert cache.n_prompts == 64


def test_a_layer_is_read_alone(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Sequence[Site]] = []
    honest = Shards.read

    def watched(self: Shards, shard: int, sites: Sequence[Site]) -> Tensor:
        read.append(sites)
        return honest(self, shard, sites)

    monkeypatch.setattr(Shards, "read", watched)
    ActivationCache.open(whole).layer(1)
    assert [list(sites) for sites in read] == [[Site("resid_post", 1)]] * 3
