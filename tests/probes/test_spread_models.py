"""A model that `device_map` has spread: blocks in memory, on the disk, and read all the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import dispatch_model
from transformers import PreTrainedModel

from probes.backends import open_backend
from probes.cache import ActivationCache
from probes.capture import capture
from probes.errors import InputError
from probes.models import ChatModel, weights_fingerprint
from tests.conftest import make_model, make_tokenizer
from tests.probes.cache_builder import files, make_chat, make_prompts
from tests.probes.test_backends import ALL_SITES, gap, make_batch

PLACES = {
    "model.embed_tokens": "cpu",
    "model.layers.0": "cpu",
    "model.layers.1": "disk",
    "model.layers.2": "disk",
    "model.norm": "cpu",
    "model.rotary_emb": "cpu",
    "lm_head": "disk",
}
"""What fits stays in memory; the rest is read from the disk when it is run."""


def spread(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """As `from_pretrained(device_map=...)` leaves a model that is too large."""
    return dispatch_model(
        model, PLACES, main_device="cpu", offload_dir=str(folder), force_hooks=True
    )


def where(model: PreTrainedModel) -> list[str]:
    """Of each block."""
    return [next(block.parameters()).device.type for block in model.model.layers]


def test_a_spread_model_is_read_at_every_site(tmp_path: Path, family: str) -> None:
    reference = open_backend(make_model(family)).capture(*make_batch("left"), ALL_SITES)
    model = spread(make_model(family), tmp_path)
    assert where(model) == ["cpu", "meta", "meta"]
    assert gap(open_backend(model).capture(*make_batch("left"), ALL_SITES), reference) == 0
    assert where(model) == ["cpu", "meta", "meta"]  # and lets go of what it has read


def test_its_cache_is_the_whole_models_own(tmp_path: Path) -> None:
    whole, prompts = make_chat(), make_prompts(12)
    chat = ChatModel(whole.name, None, spread(make_model("llama"), tmp_path / "disk"),
                     whole.tokenizer)  # fmt: skip
    assert weights_fingerprint(chat.model) == weights_fingerprint(whole.model)
    for name, one in (("whole", whole), ("spread", chat)):
        ActivationCache.build(
            tmp_path / name, one, prompts, backend=open_backend(one.model), shard_size=4
        )
    assert files(tmp_path / "spread") == files(tmp_path / "whole")

    # Positive control: of other weights on the disk it would be another.
    other = ChatModel(whole.name, None, spread(make_model("llama", seed=1), tmp_path / "disk-2"),
                      whole.tokenizer)  # fmt: skip
    ActivationCache.build(
        tmp_path / "other", other, prompts, backend=open_backend(other.model), shard_size=4
    )
    assert files(tmp_path / "other") != files(tmp_path / "whole")


@pytest.mark.parametrize("after", [1, 2], ids=["memory", "disk"])
def test_out_of_memory_in_a_spread_block_halves_the_batch(tmp_path: Path, after: int) -> None:
    """Wherever the block lies whose card is full: hooks and weights are as before, and it goes on.

    The limit is of rows, as a card's memory is.
    """
    model, tokenizer = spread(make_model("llama"), tmp_path), make_tokenizer()
    texts = [f"{i} {'abc ' * (i % 4)}" for i in range(12)]
    wanted = capture(make_model("llama"), tokenizer, texts, token_budget=64)
    mlp, sizes = model.model.layers[after].mlp, []
    run = mlp.forward

    def full(hidden: torch.Tensor) -> torch.Tensor:
        sizes.append(hidden.shape[:-1].numel())
        if sizes[-1] > limit:
            raise torch.OutOfMemoryError("the card is full")
        return run(hidden)

    mlp.forward = full
    limit = 100
    found = capture(model, tokenizer, texts, token_budget=4096)
    assert max(sizes) > limit >= min(sizes)  # positive control: it did run out, and went on
    assert torch.allclose(found, wanted, atol=1e-5)
    assert where(model) == ["cpu", "meta", "meta"]

    limit = 1
    with pytest.raises(InputError, match="does not fit into the accelerator's memory"):
        capture(model, tokenizer, texts, token_budget=4096)
