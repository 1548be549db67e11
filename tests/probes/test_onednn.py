"""Linear maps by oneDNN are linear maps, and are left to PyTorch where they must be."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import linear

from probes import capture, onednn
from probes.backends import open_backend
from probes.blocks import reading
from probes.hooks import Site
from probes.onednn import affine, by_onednn, product
from probes.rendering import Rendered
from probes.tail import gap
from tests.conftest import make_model

needs_it = pytest.mark.skipif(onednn._pointwise is None, reason="no oneDNN or no AVX-512 here")
Called = list[tuple[int, ...]]


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> Called:
    """Shapes of what the operator was given."""
    found: Called = []
    real = onednn._pointwise

    def counted(x: Tensor, *rest: object) -> Tensor:
        found.append(tuple(x.shape))
        return real(x, *rest)

    monkeypatch.setattr(onednn, "_pointwise", counted)
    return found


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


@needs_it
@given(
    batch=st.lists(st.integers(1, 3), max_size=2), rows=st.integers(64, 200),
    d_in=st.integers(200, 300), d_out=st.integers(170, 300), bias=st.booleans(),
)  # fmt: skip
def test_it_is_the_map_in_exact_arithmetic(
    batch: list[int], rows: int, d_in: int, d_out: int, bias: bool
) -> None:
    x, weight = drawn(*batch, rows, d_in), drawn(d_out, d_in)
    b = drawn(d_out) if bias else None
    exact = x.double() @ weight.double().T + (b.double() if b is not None else 0)
    with torch.inference_mode():
        found = affine(x, weight, b)
    assert found.shape == exact.shape
    # |sum of n rounded products| is off by at most n eps sum |x w|; by far less in fact.
    bound = x.double().abs() @ weight.double().abs().T + 1
    assert ((found - exact).abs() <= 8 * torch.finfo(torch.float32).eps * bound).all()
    # Positive control: the bound tells a single weight that is off.
    weight[0, 0] += 0.01
    off = x.double() @ weight.double().T + (b.double() if b is not None else 0)
    assert not ((found - off).abs() <= 8 * torch.finfo(torch.float32).eps * bound).all()


@needs_it
@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("right", [False, True])
def test_matrices_and_their_transposes_are_multiplied(
    left: bool, right: bool, called: Called
) -> None:
    a = drawn(170, 130).T if left else drawn(130, 170)
    b = drawn(150, 170).T if right else drawn(170, 150)
    bound = 8 * torch.finfo(torch.float32).eps * (a.double().abs() @ b.double().abs())
    with torch.no_grad():
        found = product(a, b)
    assert called == [(192, 170)]
    assert ((found - a.double() @ b.double()).abs() <= bound).all()
    # Positive control: of the other matrices the product is another one.
    assert not ((found - a.flip(1).double() @ b.double()).abs() <= bound).all()
    # With gradients it is torch's.
    product(a.requires_grad_(), b).sum().backward()
    assert len(called) == 1 and a.grad is not None


@needs_it
def test_a_map_by_name_is_the_map_of_the_layer(called: Called) -> None:
    x, weight, bias = drawn(2, 90, 200), drawn(170, 200), drawn(170)
    with torch.no_grad():
        found = affine(x, weight, bias)
        assert len(called) == 1
        torch.testing.assert_close(found, linear(x, weight, bias), rtol=1e-4, atol=1e-4)
        assert torch.equal(affine(x[:, :1], weight, bias), linear(x[:, :1], weight, bias))
    assert len(called) == 1
    assert affine(x, weight.requires_grad_(), bias).requires_grad


@needs_it
def test_a_layer_comes_to_it_and_rows_and_threads_change_no_bit(called: Called) -> None:
    layer, x = nn.Linear(512, 256), drawn(1, 300, 512)
    with reading(layer):
        torch.set_num_threads(2)
        both = layer(x)
        torch.set_num_threads(1)
        some = layer(x[:, 17:61])
    assert called == [(320, 512), (64, 512)]  # filled up
    assert torch.equal(both[:, 17:61], some)


@needs_it
@pytest.mark.parametrize(
    ("why", "x", "weight"),
    [
        ("float64", drawn(300, 512, dtype=torch.float64), drawn(256, 512, dtype=torch.float64)),
        ("bfloat16", drawn(300, 512, dtype=torch.bfloat16), drawn(256, 512, dtype=torch.bfloat16)),
        ("few rows", drawn(31, 512), drawn(256, 512)),
        ("a vector of weights", drawn(9000, 512), drawn(512)),
        ("meta", drawn(300, 512).to("meta"), drawn(256, 512).to("meta")),
    ],
    ids=lambda it: it if isinstance(it, str) else "",
)
def test_others_are_left_to_pytorch(why: str, x: Tensor, weight: Tensor, called: Called) -> None:
    with torch.inference_mode():
        found = affine(x, weight)
    assert not called
    if why != "meta":
        torch.testing.assert_close(found, linear(x, weight), rtol=0, atol=0)


@needs_it
def test_gradients_and_what_it_is_not_switched_on_for_are_pytorchs(
    called: Called, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, x = nn.Linear(512, 256), drawn(300, 512)
    with by_onednn(layer):
        layer(x).sum().backward()
    assert not called and layer.weight.grad is not None
    with torch.inference_mode():
        layer(x)
    with monkeypatch.context() as off, torch.inference_mode(), by_onednn(layer):
        off.setattr(torch.backends.mkldnn, "enabled", False)
        layer(x)
    with torch.inference_mode(), by_onednn(layer), torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert not called
    with torch.inference_mode(), by_onednn(layer):
        layer(x)
    assert called


@needs_it
def test_a_model_is_afterwards_as_before_and_hooks_and_replacements_stay(called: Called) -> None:
    model, x = nn.Sequential(nn.Linear(512, 256), nn.Linear(256, 256)), drawn(300, 512)
    seen: list[int] = []
    model[0].register_forward_hook(lambda *_: seen.append(1))
    mine = model[1].forward
    model[1].forward = lambda x: mine(x) + 1
    with torch.inference_mode():
        before = model(x)
        with by_onednn(model), by_onednn(model):
            during = model(x)
    assert called == [(320, 512)] and len(seen) == 2
    torch.testing.assert_close(during, before, rtol=1e-4, atol=1e-4)
    assert "forward" not in vars(model[0]) and "forward" in vars(model[1])
    with pytest.raises(ZeroDivisionError), by_onednn(model):
        raise ZeroDivisionError
    assert "forward" not in vars(model[0])


@needs_it
def test_wrong_shapes_get_an_error_of_torchs() -> None:
    layer = nn.Linear(512, 256)
    with reading(layer), pytest.raises(RuntimeError, match="shape"):
        layer(drawn(300, 511))


def test_without_the_operator_all_is_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn, "_pointwise", None)
    x, layer = drawn(300, 512), nn.Linear(512, 256)
    with reading(layer):
        assert "forward" not in vars(layer)
        found = layer(x)
    assert torch.equal(found, linear(x, layer.weight, layer.bias))


def test_it_is_looked_for_where_the_processor_has_the_instructions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert onednn._operator() is None


@needs_it
def test_prompts_of_all_lengths_are_compiled_for_few_of_them(called: Called) -> None:
    layer = nn.Linear(512, 256)
    with reading(layer):
        for n in range(16, 1025):
            assert layer(drawn(n, 512)).shape == (n, 256)
    assert len(called) == 1025 - 32
    assert len(set(called)) == 16


@needs_it
@pytest.mark.parametrize("family", ["llama", "phi3", "qwen2"])
@pytest.mark.parametrize("worth_packing", [512, 10**9], ids=["packed", "padded"])
def test_a_capture_comes_to_it_and_reads_what_transformers_does(
    family: str, worth_packing: int, called: Called, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture, "WORTH_PACKING", worth_packing)
    model = make_model(family, d_model=128)
    rows = [Rendered(tuple(range(3, 20 + 7 * i)), 16 + 7 * i, truncated=False) for i in range(12)]
    found = capture.capture_rows(
        open_backend(model), rows, [Site("resid_post", 0), Site("resid_post", 1)], pad_id=0
    )
    assert called
    for row, one in zip(rows, found, strict=True):
        with torch.inference_mode():
            states = model(torch.tensor([row.ids]), output_hidden_states=True).hidden_states
        for layer in range(2):
            last, before = states[layer + 1][0, -1], states[layer + 1][0, -2]
            assert gap(one[layer], last) <= 1e-5
            assert gap(one[layer], before) > 1e-2  # positive control: another token's
