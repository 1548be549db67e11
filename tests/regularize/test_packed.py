"""Training in packed rows: the padded batch's hidden states and gradients, and when it is left."""

from copy import deepcopy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPTNeoXConfig,
    LlamaConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
)

from probes import attention
from regularize import packed
from regularize.model import Capture

SIZE = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3,
    "num_attention_heads": 4, "max_position_embeddings": 128,
}  # fmt: skip
CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SIZE, num_key_value_heads=4),
    "qwen2": Qwen2Config(**SIZE, num_key_value_heads=2),
    "phi3": Phi3Config(**SIZE, num_key_value_heads=2, pad_token_id=0),
    "gemma3": Gemma3TextConfig(**SIZE, num_key_value_heads=1, head_dim=8, sliding_window=64),
}
ALIKE = torch.arange(20, 32)


def model_of(config: PreTrainedConfig) -> torch.nn.Module:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float64)
    lora = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, lora, autocast_adapter_dtype=False)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    return model.train()


def batch(side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of different lengths, the first three of which begin alike; one is a beginning."""
    draw = torch.Generator().manual_seed(3)
    rows = [torch.randint(1, 40, (n,), generator=draw) for n in (9, 4, 17, 30)]
    rows = [torch.cat([ALIKE, row]) if i < 2 else row for i, row in enumerate(rows)]
    rows.append(ALIKE)
    ids = torch.zeros(len(rows), 32, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(32 - len(row), 32)
        ids[i, place], mask[i, place] = row, 1
    return ids, mask


def outcome(model, states: Capture, ids, mask) -> list[torch.Tensor]:
    """Hidden states of the real tokens, and the gradients of a loss over them."""
    hidden = states(model, ids, mask)[mask.bool()]
    weights = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(1)).double()
    (hidden * weights).tanh().sum().backward()
    return [hidden, *(one.grad for one in model.parameters() if one.requires_grad)]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("long", [1, 10_000], ids=["one by one", "together"])
@pytest.mark.parametrize("family", CONFIGS)
def test_hidden_states_and_gradients_are_those_of_the_padded_batch(
    family, long, side, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(packed, "LONG", long)
    model = model_of(CONFIGS[family])
    ids, mask = batch(side)
    plain = deepcopy(model)
    padded = outcome(plain, Capture(plain), ids, mask)
    calls = []
    attend = attention.attend
    monkeypatch.setitem(
        attention.AttentionInterface._global_mapping,
        attention.NAME,
        lambda *given, **options: calls.append(1) or attend(*given, **options),
    )
    ours = deepcopy(model)
    found = outcome(ours, Capture(ours, longest=32), ids, mask)
    assert len(calls) >= 3  # it went that way
    for mine, theirs in zip(found, padded, strict=True):
        # Norms round to float32 whatever the weights are, and gradients pass many.
        assert (mine - theirs).norm() <= 1e-5 * theirs.norm()


def test_what_examples_begin_with_is_computed_once():
    ids, mask = batch("right")
    found = packed.packed(ids, mask)
    assert len(found.pack.ids) == int(mask.sum()) - 2 * len(ALIKE)
    assert (found.pack.ids[found.at][mask.bool()] == ids[mask.bool()]).all()
    # Shared, it is one place; of two rows that differ there, two.
    assert (found.at[0, :12] == found.at[1, :12]).all()
    assert not (found.at[0, :4] == found.at[2, :4]).any()


def test_a_wrong_place_would_be_seen(monkeypatch: pytest.MonkeyPatch):
    model = model_of(CONFIGS["llama"])
    ids, mask = batch("right")
    padded = Capture(model)(model, ids, mask)[mask.bool()]
    right = packed.packed
    monkeypatch.setattr(
        packed, "packed", lambda *given: (it := right(*given))._replace(at=it.at.roll(1, 0))
    )
    states = Capture(model, longest=32)
    assert not torch.allclose(states(model, ids, mask)[mask.bool()], padded, atol=1e-3)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (LlamaConfig(**SIZE, attention_dropout=0.1), "dropout"),
        (GPTNeoXConfig(**{**SIZE, "hidden_size": 32}, attention_dropout=0.1), "dropout"),
        (Gemma3TextConfig(**SIZE, num_key_value_heads=1, head_dim=8, sliding_window=8), "window"),
    ],
)
def test_what_cannot_be_packed_is_padded(config, why):
    base = AutoModelForCausalLM.from_config(config)
    assert packed.limit(base, 32) < 32, why


def test_longer_rows_and_checkpointed_models_are_padded(monkeypatch: pytest.MonkeyPatch):
    model = model_of(CONFIGS["llama"])
    ids, mask = batch("right")
    theirs = Capture(model)(model, ids, mask)[mask.bool()]
    states = Capture(model, longest=32)

    def refuse(*_):
        raise AssertionError("packed")

    monkeypatch.setattr(packed, "packed", refuse)
    with pytest.raises(AssertionError, match="packed"):
        states(model, ids, mask)
    states._limit = 31
    torch.testing.assert_close(states(model, ids, mask)[mask.bool()], theirs)
    states._limit = 32
    model.get_base_model().gradient_checkpointing_enable()
    torch.testing.assert_close(states(model, ids, mask)[mask.bool()], theirs)
