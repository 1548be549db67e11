"""Families beyond the three: what is found in them is right, what is not there is refused."""

import pytest
import torch
from transformers import (
    BertConfig,
    BertLMHeadModel,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from probes.backends import open_backend
from probes.backends.transformers import gather
from probes.errors import InputError
from probes.hooks import EMBEDDING, Site, sites
from tests.conftest import make_model
from tests.probes.test_backends import ALL_SITES, BACKENDS, gap, make_batch

GEMMA = {
    "vocab_size": 288,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
}


def make_other(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel
    if kind == "gemma3":
        model = Gemma3ForCausalLM(Gemma3TextConfig(head_dim=8, **GEMMA))
        for name, weight in model.named_parameters():
            if "layernorm" in name:
                torch.nn.init.normal_(weight)
    elif kind == "granite":
        model = GraniteForCausalLM(GraniteConfig(residual_multiplier=0.3, **GEMMA))
    elif kind == "neox":
        config = {k: v for k, v in GEMMA.items() if k != "num_key_value_heads"}
        model = GPTNeoXForCausalLM(GPTNeoXConfig(use_parallel_residual=True, **config))
    else:
        model = GPT2LMHeadModel(
            GPT2Config(vocab_size=288, n_embd=32, n_layer=3, n_head=4, initializer_range=0.2)
        )
    return model.eval()


@pytest.mark.parametrize("kind", ["gemma3", "granite", "neox", "gpt2"])
def test_block_boundaries_are_right_in_other_families(kind: str) -> None:
    model = make_other(kind)
    ids, mask, positions = make_batch("right")
    with torch.no_grad():
        states = model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    for name in ("transformers", "nnsight"):
        read = open_backend(model, name).capture(
            ids, mask, positions, [EMBEDDING, *sites("resid_post", [0, 1])]
        )
        oracle = torch.stack([gather(state, positions) for state in states[:3]], dim=1)
        assert gap(read, oracle) < 1e-4


def test_what_gemma_adds_is_read_after_its_second_norms() -> None:
    read = open_backend(make_other("gemma3")).capture(*make_batch(), ALL_SITES)
    for layer in range(3):
        pre, attn, mid, mlp, post = read[:, layer * 5 : layer * 5 + 5].unbind(1)
        torch.testing.assert_close(pre + attn, mid)
        torch.testing.assert_close(mid + mlp, post)
        assert float(attn.norm()) > 0.1 and float(mlp.norm()) > 0.1


@pytest.mark.parametrize("kind", ["granite", "neox", "gpt2"])
@pytest.mark.parametrize("name", ["transformers", "nnsight"])
def test_points_that_do_not_add_up_are_refused(kind: str, name: str) -> None:
    """Granite scales what it adds, GPT-NeoX adds in parallel, GPT-2 has other names."""
    backend = open_backend(make_other(kind), name)
    with pytest.raises(InputError, match=r"attn_out.*available: resid_post, resid_pre"):
        backend.capture(*make_batch(), [Site("attn_out", 1)])


def test_what_is_no_decoder_only_model_is_refused() -> None:
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    bert = BertLMHeadModel(BertConfig(vocab_size=50, intermediate_size=32, **small))
    t5 = T5ForConditionalGeneration(
        T5Config(vocab_size=50, d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=4)
    )
    for model in (bert, t5):
        for name in BACKENDS:
            with pytest.raises(InputError, match="not a decoder-only"):
                open_backend(model, name)
    with pytest.raises(InputError, match="Linear is no transformers"):
        open_backend(torch.nn.Linear(2, 2))
    with pytest.raises(InputError, match="str is no model"):
        open_backend("a name")


@pytest.mark.parametrize("name", BACKENDS)
def test_sites_outside_the_model_are_refused(name: str) -> None:
    backend = open_backend(make_model("llama"), name)
    for site, words in (
        (Site("resid_post", 3), "layer 3 does not exist: the model has 0..2"),
        (Site("resid_post", -1), "layer -1 does not exist"),
        (Site("resid_poste", 0), "is no hook point"),  # type: ignore[arg-type]
    ):
        with pytest.raises(InputError, match=words):
            backend.capture(*make_batch(), [site])
    with pytest.raises(InputError, match="no layer"):
        backend.capture(*make_batch(), [])
