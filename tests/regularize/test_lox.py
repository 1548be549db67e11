"""LoX (arXiv 2506.15606): every matrix against numpy's decomposition in fp64, and training from it.

What it has in common with AsFT, the aligned and the base model weight by weight, is tested here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn.functional import nll_loss
from transformers import PreTrainedModel

from probes.errors import InputError
from probes.models import ChatModel
from regularize.alignment import pairs
from regularize.defences import Given
from regularize.defences import lox as module
from regularize.defences.lox import LoX, of_rank
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
    run,
    states,
    tiny,
    trained,
    trainer,
)


def printed(aligned: Tensor, base: Tensor, k: int, a: float) -> Tensor:
    """W_aligned + a U_k S_k V_k^T, in fp64."""
    change = aligned.double().numpy() - base.double().numpy()
    u, s, vh = np.linalg.svd(change, full_matrices=False)
    k = k or len(s)
    return aligned.double() + a * torch.from_numpy((u[:, :k] * s[:k]) @ vh[:k])


def before(model: PreTrainedModel, base: PreTrainedModel, defence: LoX) -> PreTrainedModel:
    """The same model, changed."""
    assert defence.before(Given(ChatModel("tiny", None, model, make_tokenizer()), base)) is defence
    return model


def tied(**options: Any) -> PreTrainedModel:
    model = tiny(**options)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    assert model.lm_head.weight is model.model.embed_tokens.weight
    return model


# The decomposition


@settings(deadline=None)
@given(
    rows=st.integers(1, 12),
    columns=st.integers(1, 12),
    k=st.integers(0, 14),
    seed=st.integers(0, 2**16),
)
def test_the_part_is_the_best_of_its_rank(rows: int, columns: int, k: int, seed: int) -> None:
    make = torch.Generator().manual_seed(seed)
    change = torch.randn(rows, columns, generator=make, dtype=torch.float64)
    part = of_rank(change, k)
    none = torch.zeros_like(change)
    torch.testing.assert_close(part, printed(change, none, k, 1.0) - change)
    least = min(rows, columns)
    rank = min(k, least) if k else least
    assert torch.linalg.matrix_rank(part) == rank
    u = torch.linalg.svd(change, full_matrices=False).U[:, :rank]
    torch.testing.assert_close(part, u @ u.T @ change)  # the paper's Proj_k
    if k and k < least:  # the control
        assert float((of_rank(change, k + 1) - part).norm()) > 1e-6


def test_experts_are_decomposed_one_by_one() -> None:
    change = torch.randn(3, 9, 5, dtype=torch.float64)
    torch.testing.assert_close(of_rank(change, 2), torch.stack([of_rank(c, 2) for c in change]))


def spectrum(values: Tensor, columns: int) -> Tensor:
    make = torch.Generator().manual_seed(5)
    n = len(values)
    u = torch.linalg.qr(torch.randn(n, n, generator=make)).Q
    v = torch.linalg.qr(torch.randn(columns, n, generator=make)).Q
    return u * values @ v.T


@pytest.mark.parametrize(("n", "columns"), [(100, 140), (100, 100)])
def test_random_projections_agree(n: int, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    falling = spectrum(torch.arange(1, n + 1) ** -0.5, columns)
    flat = torch.randn(n, columns, generator=torch.Generator().manual_seed(6))
    exact = {k: of_rank(falling, k) for k in (1, 6, 90)}
    best = torch.linalg.svdvals(flat)[6:].norm()
    monkeypatch.setattr(module, "SMALL", 10)
    left = torch.random.get_rng_state()
    for k, wanted in exact.items():
        assert float((of_rank(falling, k) - wanted).norm() / wanted.norm()) < 1e-4
        torch.testing.assert_close(of_rank(falling, k), of_rank(falling, k), rtol=0, atol=0)
    # Noise has no main directions, but what is left over should still be the least there can be.
    assert float((flat - of_rank(flat, 6)).norm() / best) < 1 + 1e-4
    assert torch.equal(torch.random.get_rng_state(), left)
    monkeypatch.setattr(module, "OVERSAMPLING", 0)  # the control
    monkeypatch.setattr(module, "ITERATIONS", 0)
    assert float((of_rank(falling, 6) - exact[6]).norm() / exact[6].norm()) > 0.1
    assert float((flat - of_rank(flat, 6)).norm() / best) > 1.01


# The model


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("k", [0, 2])
def test_every_matrix_is_extrapolated_and_nothing_else(family: str, k: int) -> None:
    model, base = tiny(family), tiny(family, seed=1)
    old, theirs = states(model), states(base)
    new = states(before(model, base, LoX(k=k, a=0.5)))
    assert sum(weight.ndim == 2 for weight in new.values()) >= 10
    for name, weight in new.items():
        if weight.ndim < 2:
            assert torch.equal(weight, old[name])
        else:
            wanted = printed(old[name], theirs[name], k, 0.5)
            torch.testing.assert_close(weight.double(), wanted, rtol=1e-4, atol=1e-5)
            assert float((weight - old[name]).abs().max()) > 0.01
    assert equal(states(base), theirs)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_a_tied_matrix_is_changed_once() -> None:
    model, base = tied(), tied(seed=1)
    old, theirs = model.lm_head.weight.detach().clone(), base.lm_head.weight.detach()
    before(model, base, LoX(k=2, a=1.0))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    wanted = printed(old, theirs, 2, 1.0).float()
    torch.testing.assert_close(model.lm_head.weight.detach(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [tiny, tied])
def test_embeddings_and_head_can_be_left_out(make: Callable[..., PreTrainedModel]) -> None:
    model, other = make(), make()
    base = make(seed=1)
    old = states(model)
    kept = states(before(model, base, LoX(embeddings=False)))
    all_of_them = states(before(other, base, LoX()))
    for name, weight in kept.items():
        if "embed" in name or "lm_head" in name:
            assert torch.equal(weight, old[name]) and not torch.equal(all_of_them[name], old[name])
        else:
            assert torch.equal(weight, all_of_them[name])


def test_at_zero_it_is_the_aligned_model_to_the_bit() -> None:
    model, base = tiny(), tiny(seed=1)
    with torch.no_grad():
        model.model.norm.weight[0] = -0.0
        model.lm_head.weight[0, 0] = -0.0
    old = states(model)
    assert equal(states(before(model, base, LoX(a=0.0))), old)
    assert torch.signbit(model.lm_head.weight[0, 0])
    assert not equal(states(before(model, base, LoX(a=1e-3))), old)


def test_in_bfloat16_it_is_rounded_once() -> None:
    model, base = tiny().bfloat16(), tiny(seed=1).bfloat16()
    exact = before(tiny().bfloat16().float(), tiny(seed=1).bfloat16(), LoX())
    assert equal(states(before(model, base, LoX())), states(exact.bfloat16()))


def test_it_follows_from_the_two_models_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SMALL", 10)
    torch.manual_seed(1)
    one = states(before(tiny(), tiny(seed=1), LoX()))
    torch.manual_seed(2)
    assert equal(states(before(tiny(), tiny(seed=1), LoX())), one)


# The two models


def test_an_adapter_changes_no_name_and_no_weight() -> None:
    plain, base = tiny("qwen2"), tiny("qwen2", seed=1)
    wanted = pairs(plain, base)
    wrapped = get_peft_model(tiny("qwen2"), LoraConfig(target_modules="all-linear"))
    found = pairs(wrapped.get_base_model(), base)
    assert list(found) == list(wanted)
    assert not any("bias" in name or "norm" in name or "lora" in name for name in found)
    for name, pair in found.items():
        torch.testing.assert_close(pair.difference(), wanted[name].difference(), rtol=0, atol=0)
        assert not pair.difference().requires_grad


def test_other_models_are_refused_by_the_weight() -> None:
    untied = "lm_head.weight and model.embed_tokens.weight are tied in the aligned model but not"
    quantised = tiny(seed=1)
    quantised.lm_head.weight = nn.Parameter(
        torch.zeros(288, 32, dtype=torch.uint8), requires_grad=False
    )
    cases: list[tuple[PreTrainedModel, PreTrainedModel, str]] = [
        (tiny(), make_model("llama", n_layers=2, vocab_size=290), "model.embed_tokens.weight is "
         "290x32 in the base model and 288x32 in the aligned one"),
        (tiny(), make_model("llama", n_layers=1), "has no model.layers.1.self_attn.q_proj.weight"),
        (tiny(), tiny("phi3"), "has no model.layers.0.self_attn.q_proj.weight"),
        (tied(), tiny(seed=1), untied),
        (tiny(), tiny(), "has the very weights of the aligned one"),
        (tiny(), quantised, "lm_head.weight is quantised"),
    ]  # fmt: skip
    for aligned, base, message in cases:
        old = states(aligned)
        with pytest.raises(InputError, match=message):
            before(aligned, base, LoX())
        assert equal(states(aligned), old)
    # The other way round both matrices of the aligned model have their own.
    assert len(pairs(tiny(), tied(seed=1))) == len(pairs(tiny(), tiny(seed=1)))


# Training


def plain(log_q: Tensor, log_p: Tensor, target: Tensor, _: int) -> Tensor:
    return nll_loss(log_q, target, reduction="sum")


def by_hand_from(k: int, a: float, *, full: bool = False) -> dict[str, Tensor]:
    """Plain fine-tuning of a model whose matrices are numpy's."""
    model, base = tiny(), states(tiny(seed=1))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2:
                weight.copy_(printed(weight, base[name], k, a))
    return by_hand(model if full else adapted(model), plain, lr=0.02)


@pytest.mark.parametrize("full", [False, True])
def test_training_goes_on_from_there(full: bool, tmp_path: Path) -> None:
    args = {**ORDER, "learning_rate": 0.02}
    base, defence = tiny(seed=1), LoX(k=2, a=0.25)
    ours = run(tmp_path, defence=defence, base=base, full=full, args=args)
    assert distance(ours, by_hand_from(2, 0.25, full=full)) < SAME
    parts = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, **args}
    in_parts = run(tmp_path, defence=defence, base=base, full=full, args=parts)
    assert distance(in_parts, ours) < SAME
    none = run(tmp_path, defence=SFT(), full=full, args=args)
    assert distance(none, ours) > OTHER
    assert equal(run(tmp_path, defence=LoX(a=0.0), base=base, full=full, args=args), none)


def test_the_reference_is_the_extrapolated_model(tmp_path: Path) -> None:
    model = tiny()
    old = states(model)
    with_kl = trainer(
        tmp_path, model=model, defence=LoX(), base=tiny(seed=1), measure_kl=True, args=ORDER
    )
    with_kl.train()
    kl = [step["kl"] for step in with_kl.steps()]
    assert abs(kl[0]) < 1e-6 < kl[-1]
    # Fine-tuning itself has touched nothing but the adapter.
    with_kl.model.unload()
    assert equal(states(model), states(before(tiny(), tiny(seed=1), LoX())))
    assert not equal(states(model), old)


def test_a_resumed_run_starts_from_the_same(tmp_path: Path) -> None:
    args = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "optim": "adamw_torch"}
    options: dict[str, Any] = {"defence": LoX(a=0.5), "base": tiny(seed=1), "args": args}
    whole = run(tmp_path, **options)
    again = trainer(tmp_path, **options)
    again.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert distance(trained(again.model), whole) < SAME


def test_bfloat16_weights_are_trained_and_others_left_alone(tmp_path: Path) -> None:
    other = tiny()
    old = states(other)
    model = tiny("phi3").bfloat16()
    base = tiny("phi3", seed=1).bfloat16()
    found = run(tmp_path, model=model, defence=LoX(), base=base, args={"max_steps": 1})
    assert all(weight.isfinite().all() for weight in found.values())
    assert equal(states(other), old)


def test_what_means_nothing_is_refused(tmp_path: Path) -> None:
    for defence, message in (
        (LoX(k=-1), "--defence.k -1: must not be negative"),
        (LoX(a=-0.5), "--defence.a -0.5: must be a number that is not negative"),
        (LoX(a=float("nan")), "--defence.a nan: must be"),
        (LoX(a=float("inf")), "--defence.a inf: must be"),
    ):
        with pytest.raises(InputError, match=message):
            defence.check()
    LoX(k=0).check()
    with pytest.raises(InputError, match="LoX needs the model as it was before alignment: give --"):
        trainer(tmp_path, defence=LoX())
    with pytest.raises(InputError, match="merge the adapter into the model first"):
        trainer(tmp_path, model=adapted(), defence=LoX(), base=tiny(seed=1), full=True)
