"""What the fused loss or a reference would be wrong for is refused in plain words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    PreTrainedModel,
)

from probes.errors import InputError
from regularize.critics.probe import ProbeCritic
from tests.regularize.training import ROWS, lora, tiny, trainer

SIZES: dict[str, Any] = {
    "vocab_size": 288,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": None,
    "bos_token_id": 0,
    "eos_token_id": 1,
}


def capped(cap: float | None, spread: float = 0.02) -> PreTrainedModel:
    """A Gemma 2, whose logits are cap * tanh(z / cap)."""
    config = Gemma2Config(
        **SIZES, head_dim=8, final_logit_softcapping=cap, initializer_range=spread
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Gemma2ForCausalLM(config)


def scaled(kind: str, scale: float) -> PreTrainedModel:
    """Cohere multiplies its logits, Granite divides them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "cohere":
            return CohereForCausalLM(CohereConfig(**SIZES, logit_scale=scale))
        return GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=scale))


@pytest.mark.parametrize("spread", [0.02, 0.5])
def test_capped_logits(spread: float, tmp_path: Path) -> None:
    """Even where they are so small yet that the cap is hardly felt."""
    with pytest.raises(InputError, match="caps or scales them"):
        trainer(tmp_path, model=capped(30.0, spread))
    trainer(tmp_path, model=capped(None, spread)).train()


@pytest.mark.parametrize(("kind", "scale"), [("cohere", 0.0625), ("granite", 8.0)])
def test_scaled_logits(kind: str, scale: float, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="caps or scales them"):
        trainer(tmp_path, model=scaled(kind, scale))
    trainer(tmp_path, model=scaled(kind, 1.0)).train()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (lora(target_modules=["q_proj", "lm_head"]), "leave lm_head out of the adapter's targets"),
        (lora(modules_to_save=["lm_head"]), "leave lm_head out"),
        (PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4), "virtual tokens"),
        (lora(target_modules=["no_such_module"]), "the adapter does not fit the model"),
    ],
    ids=["on-the-head", "head-saved", "prompt-tuning", "no-such-module"],
)
@pytest.mark.parametrize("reference", ["cached", "adapter-off", "copy"])
def test_adapters(config: Any, message: str, reference: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        trainer(tmp_path, peft_config=config, reference=reference)
    assert message in str(error.value)


def test_an_adapter_that_trains_biases_cannot_be_switched_off(tmp_path: Path) -> None:
    """They are the model's own, so that without the adapter it would be another model."""
    biased: LoraConfig = lora(bias="all", target_modules=["q_proj", "v_proj"])
    with pytest.raises(InputError, match="biases"):
        trainer(tmp_path, model=tiny("qwen2"), peft_config=biased, reference="adapter-off")
    for kind in ("cached", "copy"):
        one = trainer(tmp_path, model=tiny("qwen2"), peft_config=biased, reference=kind)
        one.train()
        assert one.state.log_history[-2]["kl"] > 1e-3


def test_the_reference_of_a_model_without_an_adapter_cannot_be_switched_to(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs an adapter to switch off"):
        trainer(tmp_path, full=True, reference="adapter-off")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"fsdp": True, "fsdp_config": {"version": 1}}, "FSDP version 1"),
        ({"fsdp": True, "fsdp_config": {"version": 2}}, "and one was started"),
        ({"n_gpu": 2}, "start with `torchrun"),
    ],
    ids=["fsdp-1", "one-process", "several-gpus"],
)
def test_machines(
    args: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.regularize import training

    class Arguments(training.TrainingArguments):
        n_gpu = property(lambda self: args.get("n_gpu", 1))
        fsdp = property(lambda self: args.get("fsdp"), lambda self, value: None)
        fsdp_config = property(lambda self: args.get("fsdp_config"), lambda self, value: None)

    monkeypatch.setattr(training, "TrainingArguments", Arguments)
    with pytest.raises(InputError) as error:
        trainer(tmp_path)
    assert message in str(error.value)
    args.clear()
    trainer(tmp_path)


def test_nothing_is_computed_before_a_refusal_that_needs_no_computing(tmp_path: Path) -> None:
    """A defence without sense and a probe that is not there are told at once."""
    with pytest.raises(InputError, match="no frozen probe can be read"):
        trainer(tmp_path, critic=ProbeCritic(str(tmp_path / "nowhere")), rows=ROWS)
    assert not (tmp_path / "cache").exists()
