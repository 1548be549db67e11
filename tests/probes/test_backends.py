"""All backends read the same activations, and those of the oracle: transformers' hidden states."""

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
)

from probes.backends import open_backend
from probes.backends.transformers import gather
from probes.errors import InputError
from probes.hooks import EMBEDDING, HOOK_POINTS, ORDER, Site, sites
from probes.models import weights_fingerprint
from tests.conftest import make_model

BACKENDS = ("transformers", "transformer-lens", "nnsight")
LENGTHS = (3, 11, 7, 1)
ALL_SITES = tuple(Site(point, layer) for layer in range(3) for point in ORDER)


def make_batch(
    side: str = "right", lengths: tuple[int, ...] = LENGTHS, vocabulary: int = 200, pad: int = 5
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, mask and the column of the last token, padded on either side with an ordinary id."""
    width = max(lengths) + 2  # padding in the longest row too
    ids, mask = torch.full((len(lengths), width), pad), torch.zeros(len(lengths), width).long()
    generator = torch.Generator().manual_seed(0)
    positions = []
    for row, length in enumerate(lengths):
        start = 0 if side == "right" else width - length
        ids[row, start : start + length] = torch.randint(
            6, vocabulary, (length,), generator=generator
        )
        mask[row, start : start + length] = 1
        positions.append(start + length - 1)
    return ids, mask, torch.tensor(positions)


def gap(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max())


@pytest.mark.parametrize("name", BACKENDS)
def test_every_backend_reads_what_transformers_itself_returns(name: str, family: str) -> None:
    model = make_model(family)
    ids, mask, positions = make_batch()
    read = open_backend(model, name).capture(ids, mask, positions, ALL_SITES)
    assert read.shape == (4, len(ALL_SITES), 32) and read.dtype == torch.float32

    with torch.no_grad():
        states = model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    rows = torch.arange(len(ids))
    for index, site in enumerate(ALL_SITES):
        if site.point == "resid_pre":
            assert gap(read[:, index], states[site.layer][rows, positions]) < 1e-4, site
            assert gap(read[:, index], states[site.layer][rows, positions - 1]) > 0.1
        if site.point == "resid_post":
            oracle = gap(read[:, index], states[site.layer + 1][rows, positions])
            # transformers' last entry is after the final norm: another vector.
            assert oracle > 0.1 if site.layer == 2 else oracle < 1e-4, site


@pytest.mark.parametrize("name", BACKENDS[1:])
def test_backends_agree_at_every_hook_point(name: str, family: str) -> None:
    model = make_model(family)
    batch = make_batch()
    reference = open_backend(model, "transformers").capture(*batch, ALL_SITES)
    read = open_backend(model, name).capture(*batch, ALL_SITES)
    for index, site in enumerate(ALL_SITES):
        assert gap(read[:, index], reference[:, index]) < 1e-4, site
    distances = torch.cdist(reference[0], reference[0])
    distinct = {site: i for i, site in enumerate(ALL_SITES)}
    assert float(distances[distinct[ALL_SITES[0]], distinct[ALL_SITES[1]]]) > 0.1


@pytest.mark.parametrize("name", BACKENDS)
def test_left_padding_equals_right_padding_equals_no_padding(name: str, family: str) -> None:
    backend = open_backend(make_model(family), name)
    left = backend.capture(*make_batch("left"), ALL_SITES)
    right = backend.capture(*make_batch("right"), ALL_SITES)
    other_pad = backend.capture(*make_batch("left", pad=100), ALL_SITES)
    assert gap(left, right) < 1e-4
    assert gap(left, other_pad) < 1e-4
    ids, _, positions = make_batch("right")
    for row, length in enumerate(LENGTHS):
        alone = ids[row : row + 1, :length]
        read = backend.capture(alone, torch.ones_like(alone), positions[row : row + 1], ALL_SITES)
        assert gap(read[0], right[row]) < 1e-4


def test_the_padding_test_could_fail(family: str) -> None:
    """Without positions counted from the mask, left padding gives other activations."""
    model = make_model(family)
    ids, mask, positions = make_batch("left")
    with torch.no_grad():
        naive = model(
            input_ids=ids, attention_mask=torch.ones_like(mask), output_hidden_states=True
        ).hidden_states[1]
    right = open_backend(model).capture(*make_batch("right"), sites("resid_post", [0]))
    assert gap(gather(naive, positions), right[:, 0]) > 1e-2


def test_the_residual_stream_adds_up(family: str) -> None:
    read = open_backend(make_model(family)).capture(*make_batch(), ALL_SITES)
    for layer in range(3):
        pre, attn, mid, mlp, post = read[:, layer * 5 : layer * 5 + 5].unbind(1)
        torch.testing.assert_close(pre + attn, mid)
        torch.testing.assert_close(mid + mlp, post)
        if layer < 2:
            torch.testing.assert_close(post, read[:, (layer + 1) * 5], rtol=0, atol=0)


def test_the_embedding_is_the_embedding_matrix(family: str) -> None:
    model = make_model(family)
    ids, mask, positions = make_batch()
    read = open_backend(model).capture(ids, mask, positions, [EMBEDDING])[:, 0]
    last = ids[torch.arange(len(ids)), positions]
    assert torch.equal(read, model.get_input_embeddings().weight[last].detach())


@pytest.mark.parametrize("name", BACKENDS)
def test_sites_come_back_in_the_order_asked_for(name: str) -> None:
    backend = open_backend(make_model("llama"), name)
    batch = make_batch()
    asked = [Site("mlp_out", 2), EMBEDDING, Site("resid_post", 1), EMBEDDING]
    read = backend.capture(*batch, asked)
    for index, site in enumerate(asked):
        assert gap(read[:, index], backend.capture(*batch, [site])[:, 0]) < 1e-6


@pytest.mark.parametrize("name", BACKENDS)
def test_the_model_is_left_as_it_was(name: str, family: str) -> None:
    model = make_model(family)
    ids, mask, positions = make_batch()
    model.train()
    model.model.layers[1].eval()
    names = [name for name, _ in model.named_modules()]
    modes = [module.training for module in model.modules()]
    attention = model.config._attn_implementation
    before = weights_fingerprint(model)

    open_backend(model, name).capture(ids, mask, positions, ALL_SITES)

    assert [name for name, _ in model.named_modules()] == names
    assert [module.training for module in model.modules()] == modes
    assert model.config._attn_implementation == attention
    assert weights_fingerprint(model) == before
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks
    # Still trainable: nothing that inference left behind is in the way.
    model(input_ids=ids, labels=ids).loss.backward()


def test_dropout_is_off_while_reading() -> None:
    model = make_model("phi3")
    for block in model.model.layers:
        block.resid_mlp_dropout.p = 0.5
    model.eval()
    quiet = open_backend(model).capture(*make_batch(), ALL_SITES)
    model.train()
    assert torch.equal(open_backend(model).capture(*make_batch(), ALL_SITES), quiet)


def test_hooks_are_removed_when_the_model_fails() -> None:
    model = make_model("llama")
    model.train()

    def explode(*_: object) -> None:
        raise RuntimeError("boom")

    handle = model.model.layers[1].mlp.register_forward_hook(explode)
    with pytest.raises(RuntimeError, match="boom"):
        open_backend(model).capture(*make_batch(), sites("resid_post", range(3)))
    handle.remove()
    assert model.training
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks


@pytest.mark.parametrize("name", BACKENDS)
def test_neither_the_head_nor_later_blocks_run(name: str) -> None:
    model = make_model("llama")
    backend = open_backend(model, name)
    ran: list[str] = []
    # The modules that run: TransformerLens has its own, which share the weights.
    inner = backend.bridge.original_model if name == "transformer-lens" else model
    blocks = inner.model.layers
    for index, block in enumerate(blocks):
        block.mlp.register_forward_hook(lambda *_, index=index: ran.append(f"block {index}"))
    inner.lm_head.register_forward_hook(lambda *_: ran.append("head"))

    backend.capture(*make_batch(), sites("resid_post", [1, 0]))
    assert ran == ["block 0", "block 1"]
    ran.clear()
    backend.capture(*make_batch(), sites("resid_post", [2]))
    assert ran == ["block 0", "block 1", "block 2"]


def test_a_row_does_not_keep_its_sequence_alive() -> None:
    hidden = torch.randn(4, 1000, 8)
    row = gather(hidden, torch.tensor([999, 0, 5, 7]))
    assert row.untyped_storage().nbytes() == 4 * 8 * 4
    assert torch.equal(row, torch.stack([hidden[0, 999], hidden[1, 0], hidden[2, 5], hidden[3, 7]]))


@pytest.mark.parametrize("name", BACKENDS)
def test_activations_keep_the_models_dtype(name: str) -> None:
    model = make_model("qwen2").to(torch.bfloat16)
    exact = open_backend(make_model("qwen2")).capture(*make_batch(), ALL_SITES)
    read = open_backend(model, name).capture(*make_batch(), ALL_SITES)
    assert read.dtype == torch.bfloat16
    assert gap(read.float(), exact) < 0.05 * float(exact.abs().max())


# Real weights


def test_all_backends_agree_on_real_pretrained_weights(data_dir: Any) -> None:
    model = AutoModelForCausalLM.from_pretrained(data_dir / "models" / "stories260k")
    every = [Site(point, layer) for layer in range(5) for point in ORDER]
    batch = make_batch(lengths=(40, 3, 17), vocabulary=512)
    reference = open_backend(model, "transformers").capture(*batch, every)
    for name in BACKENDS[1:]:
        assert gap(open_backend(model, name).capture(*batch, every), reference) < 1e-4
    left = make_batch("left", lengths=(40, 3, 17), vocabulary=512)
    for name in BACKENDS:
        assert gap(open_backend(model, name).capture(*left, every), reference) < 1e-4


def test_names_go_there_and_back() -> None:
    for site in ALL_SITES:
        assert Site.parse(site.name) == site
    assert Site("resid_mid", 12).name == "blocks.12.hook_resid_mid"
    assert set(ORDER) == set(HOOK_POINTS)
    for name in ("blocks.1.hook_resid", "resid_post", "blocks.x.hook_resid_post"):
        with pytest.raises(InputError, match=r"blocks\.LAYER\.hook_POINT"):
            Site.parse(name)
    with pytest.raises(InputError, match="is no hook point"):
        sites("resid", [0])
