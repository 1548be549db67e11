"""AsFT (arXiv 2506.08473): the dense formula as it is printed, by autograd, in fp64."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import IA3Config, LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn.functional import nll_loss
from transformers import PreTrainedModel

from probes.errors import InputError
from probes.models import ChatModel
from regularize.alignment import Along
from regularize.defences import Given
from regularize.defences.asft import AsFT, Projection
from regularize.defences.none import SFT
from tests.conftest import FAMILIES, make_model, make_tokenizer
from tests.regularize.training import (
    ORDER,
    OTHER,
    SAME,
    adapted,
    by_hand,
    distance,
    equal,
    lora,
    run,
    states,
    tiny,
    trained,
    trainer,
)

PROJECTIONS: tuple[Projection, ...] = ("frobenius", "exact", "none")


def printed(update: Tensor, change: Tensor, projection: Projection) -> Tensor:
    """||(I - C) dW||_F^2 with C as a matrix, in fp64."""
    d, update = change.double(), update.double()
    if projection == "none":
        return update.norm() ** 2
    c = d @ d.T / d.norm() if projection == "frobenius" else d @ torch.linalg.pinv(d, rtol=1e-7)
    return (update - c @ update).norm() ** 2


def steps_of(defence: AsFT, policy: nn.Module, base: PreTrainedModel) -> Any:
    chat = ChatModel("tiny", None, cast(Any, policy), make_tokenizer())
    return defence.steps(policy, Given(chat, base))


def with_updates(model: PreTrainedModel, config: LoraConfig | None = None) -> Any:
    """A model with an adapter whose B is not zero, as in the midst of training."""
    policy = get_peft_model(model, config or lora())
    make = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if "lora_B" in name:
                weight.copy_(0.3 * torch.randn(weight.shape, generator=make))
    return policy


def dense(
    policy: nn.Module,
    aligned: dict[str, Tensor],
    base: dict[str, Tensor],
    *,
    projection: Projection = "frobenius",
    scale: float = 1.0,
) -> Tensor:
    """The sum over all adapters, found by their names as texts."""
    weights = dict(policy.named_parameters())
    total = torch.zeros((), dtype=torch.float64)
    for name, a in weights.items():
        if ".lora_A.default." in name:
            own = name.removeprefix("base_model.model.").replace(".lora_A.default", "")
            update = scale * weights[name.replace("lora_A", "lora_B")] @ a
            total = total + printed(update, aligned[own] - base[own], projection)
    return total


# The formula


@settings(deadline=None)
@given(
    out=st.integers(1, 9),
    into=st.integers(1, 9),
    r=st.integers(1, 4),
    projection=st.sampled_from(PROJECTIONS),
    whole=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_value_and_gradient_are_the_printed_ones(
    out: int, into: int, r: int, projection: Projection, whole: bool, seed: int
) -> None:
    make = torch.Generator().manual_seed(seed)
    change, b, a, w = (
        torch.randn(size, generator=make, dtype=torch.float64)
        for size in ((out, into), (out, r), (r, into), (out, into))
    )
    leaves = [one.requires_grad_() for one in ([w] if whole else [b, a])]
    ours = Along.of(change, projection).rest(*([w] if whole else [b, a]))
    naive = printed(w if whole else b @ a, change, projection)
    torch.testing.assert_close(ours, naive, atol=1e-10, rtol=1e-8)
    torch.testing.assert_close(
        torch.autograd.grad(ours, leaves),
        torch.autograd.grad(naive, leaves),
        atol=1e-10,
        rtol=1e-8,
    )


def test_which_side_and_which_norm_count() -> None:
    """The control: with the update transposed, or with the other C, it is another number."""
    make = torch.Generator().manual_seed(0)
    change, update = torch.randn(2, 6, 6, generator=make, dtype=torch.float64)

    def of(update: Tensor, change: Tensor) -> float:
        return float(Along.of(change, "frobenius").rest(update))

    value = of(update, change)
    assert abs(value - of(update.T, change)) > 0.1
    assert abs(value - of(update, change.T)) > 0.1
    assert abs(value - of(update, 2 * change)) > 0.1  # no projector: its scale matters
    for other in ("exact", "none"):
        assert abs(value - float(Along.of(change, other).rest(update))) > 0.1


@settings(deadline=None)
@given(rank=st.integers(1, 4), seed=st.integers(0, 2**16))
def test_the_exact_one_is_a_projector(rank: int, seed: int) -> None:
    make = torch.Generator().manual_seed(seed)
    left, right, update = (
        torch.randn(size, generator=make, dtype=torch.float64)
        for size in ((8, rank), (rank, 5), (8, 5))
    )
    along = Along.of(left @ right, "exact")
    assert along.factor.shape == (8, rank)
    all_of_it = float(update.norm() ** 2)
    outside = float(along.rest(update))
    inside = left @ right @ torch.randn(5, 5, generator=make, dtype=torch.float64)
    assert 0.01 < outside < all_of_it
    assert float(along.rest(inside)) < 1e-16 * float(inside.norm() ** 2)
    thrice = Along.of(3 * left @ right, "exact")
    assert float(thrice.rest(update)) == pytest.approx(outside)


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_where_alignment_has_changed_nothing_all_of_it_is_held(projection: Projection) -> None:
    b, a = torch.randn(6, 2), torch.randn(2, 4)
    ours = Along.of(torch.zeros(6, 4), projection).rest(b, a)
    torch.testing.assert_close(ours, (b @ a).norm() ** 2)


# The model


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("projection", PROJECTIONS)
@pytest.mark.parametrize("scaled", [False, True])
def test_each_adapter_has_its_own_matrix(family: str, projection: Projection, scaled: bool) -> None:
    aligned, base = states(tiny(family)), tiny(family, seed=1)
    theirs = states(base)
    policy = with_updates(tiny(family))
    steps = steps_of(AsFT(2.0, projection, scaled), policy, base)
    scale = 32 / 4 if scaled else 1.0
    wanted = 2 * dense(policy, aligned, theirs, projection=projection, scale=scale)
    ours = steps.penalty()
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), wanted, rtol=1e-5, atol=0)
    leaves = [p for p in policy.parameters() if p.requires_grad]
    found = torch.autograd.grad(ours, leaves, allow_unused=True)
    expected = torch.autograd.grad(wanted, leaves)
    for one, other in zip(found, expected, strict=True):
        one = torch.zeros_like(other) if one is None else one  # where C = I
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * wanted.item())
    unwrapped = states(policy.unload())
    assert equal(unwrapped, aligned) and equal(states(base), theirs)
    assert steps.state() == {}


def test_biases_and_other_targets_shift_no_pairing() -> None:
    """Qwen2 has biases at q, k and v; the order of the targets is none of the model's."""
    aligned, base = states(tiny("qwen2")), tiny("qwen2", seed=1)
    policy = with_updates(
        tiny("qwen2"), lora(target_modules=["v_proj", "down_proj", "q_proj"], bias="all")
    )
    ours = steps_of(AsFT(), policy, base).penalty()
    torch.testing.assert_close(
        ours.double(), dense(policy, aligned, states(base)), rtol=1e-5, atol=0
    )


def test_several_adapters_are_one_update() -> None:
    aligned, base = states(tiny()), tiny(seed=1)
    policy = with_updates(tiny())
    policy.add_adapter("second", lora(r=2, init_lora_weights=False))
    policy.base_model.set_adapter(["default", "second"])
    ours = steps_of(AsFT(scaled=True), policy, base).penalty()
    policy.merge_adapter()
    merged = {
        name.replace(".base_layer", ""): weight.double()
        for name, weight in policy.get_base_model().named_parameters()
    }
    wanted = sum(
        float(printed(merged[name] - weight, weight - states(base)[name], "frobenius"))
        for name, weight in aligned.items()
        if "proj" in name
    )
    assert ours.item() == pytest.approx(wanted, rel=1e-4)


def test_it_is_computed_in_float32_whatever_the_weights() -> None:
    base = tiny(seed=1).bfloat16()
    aligned = states(tiny().bfloat16())
    policy = with_updates(tiny().bfloat16(), LoraConfig(r=4, target_modules="all-linear"))
    steps = steps_of(AsFT(), policy, base)
    ours = steps.penalty()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(steps.penalty(), ours)
    kept = {
        name: (aligned[name].float() - weight.float()).bfloat16().double()
        for name, weight in states(base).items()
    }
    none = {name: torch.zeros((), dtype=torch.float64) for name in kept}
    wanted = dense(policy, kept, none)
    assert ours.dtype == torch.float32 and ours.item() == pytest.approx(wanted.item(), rel=1e-3)
    ours.backward()
    assert all(p.grad.isfinite().all() for p in policy.parameters() if p.requires_grad)


# Training


def naive_training(defence: AsFT, *, full: bool = False, **options: Any) -> dict[str, Tensor]:
    """Plain fine-tuning with the dense formula added to each step's loss."""
    model = tiny() if full else adapted()
    aligned, base = states(tiny()), states(tiny(seed=1))

    def penalty() -> Tensor:
        if not full:
            return dense(model, aligned, base, projection=defence.projection)
        return torch.stack([
            printed(weight - aligned[name], aligned[name] - base[name], defence.projection)
            for name, weight in model.named_parameters()
            if weight.ndim == 2
        ]).sum()  # fmt: skip

    def loss(log_q: Tensor, log_p: Tensor, target: Tensor, _: int) -> Tensor:
        # `by_hand` divides by the step's answer tokens.
        return nll_loss(log_q, target, reduction="sum") + len(target) * defence.strength * penalty()

    return by_hand(model, loss, **options)


def test_training_goes_the_printed_way(tmp_path: Path) -> None:
    args = {**ORDER, "learning_rate": 0.02, "max_steps": 4}
    parts = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, **args}
    base = tiny(seed=1)
    for full in (False, True):
        none = run(tmp_path, defence=SFT(), full=full, args=args)
        defence = AsFT(0.5 if full else 4.0)
        ours = run(tmp_path, defence=defence, base=base, full=full, args=args)
        assert distance(ours, naive_training(defence, full=full, steps=4, lr=0.02)) < SAME
        assert distance(ours, none) > OTHER
        # The penalty counts once a step.
        in_parts = run(tmp_path, defence=defence, base=base, full=full, args=parts)
        assert distance(in_parts, ours) < SAME
        assert equal(run(tmp_path, defence=AsFT(0.0), base=base, full=full, args=args), none)
    exact = AsFT(4.0, "exact")
    ours = run(tmp_path, defence=exact, base=base, args=args)
    assert distance(ours, naive_training(exact, steps=4, lr=0.02)) < SAME


@pytest.mark.parametrize("full", [False, True])
def test_a_resumed_run_is_held_to_the_same_weights(full: bool, tmp_path: Path) -> None:
    args = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "optim": "adamw_torch"}
    base = tiny(seed=1)
    options: dict[str, Any] = {"base": base, "full": full, "args": {**args, "learning_rate": 1e-2}}
    whole = run(tmp_path, defence=AsFT(), **options)
    assert distance(run(tmp_path / "other", defence=SFT(), **options), whole) > OTHER
    again = trainer(tmp_path, defence=AsFT(), **options)
    again.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert distance(trained(again.model), whole) < SAME


def test_nothing_else_is_touched(tmp_path: Path) -> None:
    model, other, base = tiny("phi3").bfloat16(), tiny(), tiny("phi3", seed=1).bfloat16()
    old = states(model), states(other), states(base)
    one = trainer(tmp_path, model=model, defence=AsFT(), base=base, args={"max_steps": 2})
    one.train()
    assert all(weight.isfinite().all() for weight in trained(one.model).values())
    one.model.unload()
    assert all(equal(states(m), o) for m, o in zip((model, other, base), old, strict=True))


def test_what_cannot_be_held_is_refused(tmp_path: Path) -> None:
    base, plain = tiny(seed=1), "AsFT knows plain LoRA on linear layers, and the adapter on "
    ia3 = IA3Config(target_modules=["k_proj"], feedforward_modules=[])
    frozen = tiny().requires_grad_(False)
    only_q = AsFT(projection="exact"), lora(target_modules=["q_proj"])
    cases: list[tuple[AsFT, Any, PreTrainedModel, str]] = [
        (AsFT(), lora(use_dora=True), base, plain + r"model.layers.0.self_attn.q_proj is none"),
        (AsFT(), lora(target_modules=["embed_tokens"]), base, plain + "model.embed_tokens"),
        (AsFT(), ia3, base, "AsFT holds LoRA adapters on linear layers and models"),
        (AsFT(), None, base, "what is trained here is neither"),
        (*only_q, base, "--defence.projection exact: W_aligned - W_base has full rank"),
        (AsFT(0.0), lora(), make_model("llama", n_layers=2, vocab_size=300),
         "model.embed_tokens.weight is 300x32 in the base model and 288x32"),
        (AsFT(), lora(), tiny(), "the very weights of the aligned one"),
    ]  # fmt: skip
    for defence, config, other, message in cases:
        policy = frozen if config is None else get_peft_model(tiny(), config)
        with pytest.raises(InputError, match=message):
            steps_of(defence, policy, other)
    with pytest.raises(InputError, match="AsFT needs the model as it was before alignment: give"):
        trainer(tmp_path, defence=AsFT())
    for strength in (-1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match=f"--defence.strength {strength}: must be a number"):
            AsFT(strength).check()
    AsFT(0.0).check()
