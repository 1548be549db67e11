"""LoRA's map in one piece against the formula, against peft, and where peft does it as before."""

from copy import deepcopy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import nn

from probes import onednn
from regularize import lora

SHAPES = st.tuples(*[st.integers(1, 6)] * 4)


class Two(nn.Module):
    """Two linear maps, one after another."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 10), nn.Linear(10, 4, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x).tanh())


@given(shape=SHAPES, s=st.floats(-3, 3), biased=st.booleans(), seed=st.integers(0, 9))
def test_map_and_gradients_are_the_formula_s(shape, s, biased, seed):
    n, d_in, d_out, r = shape
    draw = torch.Generator().manual_seed(seed)
    x, w, bias, a, b = (
        torch.randn(*size, generator=draw, dtype=torch.float64)
        for size in ((2, n, d_in), (d_out, d_in), (d_out,), (r, d_in), (d_out, r))
    )
    learnt = [one.requires_grad_() for one in (x, a, b)]
    bias = bias if biased else None
    ours = lora.adapted(x, w, bias, a, b, s)
    theirs = x @ (w + s * b @ a).T + (0 if bias is None else bias)
    torch.testing.assert_close(ours, theirs)
    toward = torch.randn(ours.shape, generator=draw, dtype=torch.float64)
    for mine, right in zip(
        torch.autograd.grad(ours, learnt, toward),
        torch.autograd.grad(theirs, learnt, toward),
        strict=True,
    ):
        torch.testing.assert_close(mine, right)


def tuned(**options) -> nn.Module:
    torch.manual_seed(0)
    model = get_peft_model(Two(), LoraConfig(r=3, target_modules=["first", "second"], **options))
    for name, weight in model.named_parameters():
        if "lora_B" in name:  # zero before training, where nothing could be told
            nn.init.normal_(weight)
    return model


def outcome(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    torch.manual_seed(1)  # of dropout
    y = model(x)
    y.square().sum().backward()
    return [y, *(one.grad for one in model.parameters() if one.requires_grad)]


@pytest.mark.parametrize(
    "options", [{}, {"lora_dropout": 0.5}, {"use_dora": True}, {"lora_bias": True}]
)
def test_same_as_peft_whether_it_can_be_fused_or_not(options):
    theirs = tuned(**options).train()
    ours = deepcopy(theirs)
    assert lora.fuse(ours) == 2
    x = torch.randn(2, 5, 6)
    for mine, right in zip(outcome(ours, x), outcome(theirs, x), strict=True):
        torch.testing.assert_close(mine, right)


def test_plain_layers_are_indeed_fused(monkeypatch):
    calls = []
    fused = lora.adapted
    monkeypatch.setattr(lora, "adapted", lambda *given: calls.append(1) or fused(*given))
    plain, dropping = tuned(), tuned(lora_dropout=0.5)
    for model in (plain, dropping):
        lora.fuse(model)
        model(torch.randn(5, 6))
    assert len(calls) == 2  # the layers of the first alone


def test_off_merged_and_under_autocast_it_is_peft_s():
    model = tuned()
    lora.fuse(model)
    x = torch.randn(5, 6)
    with torch.no_grad():
        on = model(x)
        with model.disable_adapter():
            off = model(x)
        bare = model.get_base_model()
        torch.testing.assert_close(off, bare.second.base_layer(bare.first.base_layer(x).tanh()))
        assert not torch.allclose(on, off)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert model(x).dtype == torch.bfloat16
        torch.testing.assert_close(model.merge_and_unload()(x), on)


def test_trained_weights_are_left_to_peft():
    model = tuned()
    model.base_model.model.first.base_layer.weight.requires_grad_()
    assert lora.fuse(model) == 1


@pytest.mark.parametrize("part", ["base_layer", "lora_A.default", "lora_B.default"])
@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward"])
def test_hooks_on_its_parts_are_called(part, kind):
    model = tuned()
    lora.fuse(model)
    seen = []
    module = model.base_model.model.second.get_submodule(part)
    handle = getattr(module, f"register_{kind}_hook")(lambda *_: seen.append(1))
    x = torch.randn(5, 6)
    with_hook = outcome(model, x)
    assert seen == [1]
    handle.remove()
    model.zero_grad()
    for one, other in zip(outcome(model, x), with_hook, strict=True):
        torch.testing.assert_close(one, other)
    assert seen == [1]


@pytest.mark.skipif(onednn._pointwise is None, reason="no oneDNN or no AVX-512 here")
def test_wide_layers_are_multiplied_by_onednn_with_the_same_gradients(monkeypatch):
    called, real = [], onednn._pointwise
    shapes = (200, 300), (256, 300), (256,), (8, 300), (256, 8)
    draws = torch.Generator().manual_seed(0)
    x, weight, bias, a, b = (torch.randn(*shape, generator=draws) for shape in shapes)

    def gradients(dtype: torch.dtype) -> list[torch.Tensor]:
        x_, a_, b_ = (one.to(dtype).requires_grad_() for one in (x.view(2, 100, 300), a, b))
        y = lora.adapted(x_, weight.to(dtype), bias.to(dtype), a_, b_, 0.5)
        (y.square().sum() / 1000).backward()
        return [y.detach(), x_.grad, a_.grad, b_.grad]

    exact = gradients(torch.float64)
    monkeypatch.setattr(
        onednn, "_pointwise", lambda x, *rest: called.append(len(x)) or real(x, *rest)
    )
    for one, other in zip(gradients(torch.float32), exact, strict=True):
        scale = float(other.abs().max())
        assert ((one - other).abs() <= 1e-5 * scale).all()
    assert called == [256, 256]  # forwards and backwards; what has r columns is small
