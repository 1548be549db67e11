"""Prompts read in a packed row are those read one by one, wherever they are read."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from accelerate import disk_offload
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
)

from probes import attention
from probes.attention import NAME, Plan, UnpackableError, attending, together, triangle
from probes.backends import PackingBackend, open_backend
from probes.backends.transformers import TransformersBackend
from probes.capture import capture_rows, capture_spans
from probes.hooks import ORDER, Site
from probes.packing import in_order, pack
from probes.positions import Span
from probes.rendering import Rendered
from tests.conftest import make_model
from tests.probes.test_families import GEMMA

KINDS = ("llama", "phi3", "qwen2", "gemma3", "mixtral")
EVERY = [Site(point, layer) for layer in range(3) for point in ORDER]
HEADERS = ((), tuple(range(60, 75)), (*range(60, 75), 8, 9, *range(100, 109)), (7,) * 30)


def make(kind: str) -> PreTrainedModel:
    """Random weights. Gemma's sandwich norms are no identity; its window is of 40 tokens."""
    if kind not in ("gemma3", "mixtral"):
        return make_model(kind)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "mixtral":
            return MixtralForCausalLM(MixtralConfig(num_local_experts=4, **GEMMA)).eval()
        model = Gemma3ForCausalLM(Gemma3TextConfig(head_dim=8, sliding_window=40, **GEMMA)).eval()
        for name, weight in model.named_parameters():
            if "layernorm" in name:
                nn.init.normal_(weight)
        return model


# The kernel of experts knows no float64.
EXACT = KINDS[:-1]
MODELS = {kind: make(kind).double() for kind in EXACT}


@pytest.fixture(autouse=True)
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pack however few tokens there are."""
    monkeypatch.setattr("probes.capture.WORTH_PACKING", 0)


def row(ids: Sequence[int]) -> Rendered:
    return Rendered(tuple(ids), len(ids) - 1, truncated=False)


@st.composite
def prompts(draw: st.DrawFn) -> list[Rendered]:
    """Prompts of which many begin alike, contain one another or are the same."""
    tails = st.lists(st.integers(0, 9), min_size=1, max_size=25)
    texts = st.tuples(st.sampled_from(HEADERS), tails).map(lambda both: row([*both[0], *both[1]]))
    found = draw(st.lists(texts, min_size=1, max_size=8))
    return [*found, *draw(st.lists(st.sampled_from(found), max_size=2))]


def some(n: int = 12) -> list[Rendered]:
    torch.manual_seed(0)
    tails = [torch.randint(288, (3 + 2 * i,)).tolist() for i in range(n)]
    return [row([*HEADERS[i % 4], *tail]) for i, tail in enumerate(tails)]


def states(model: PreTrainedModel, one: Rendered) -> list[Tensor]:
    """Oracle: transformers' own, of one prompt alone, but for the last, which is normed."""
    with torch.no_grad():
        return list(model(torch.tensor([one.ids]), output_hidden_states=True).hidden_states[:-1])


def alone(backend: TransformersBackend, rows: Sequence[Rendered], sites: Sequence[Site]) -> Tensor:
    """Oracle: one by one, through the padded path, which has its own tests."""
    found = []
    for one in rows:
        ids = torch.tensor([one.ids])
        at = torch.tensor([one.position])
        found.append(backend.capture(ids, torch.ones_like(ids), at, sites))
    return torch.cat(found)


@contextmanager
def counting() -> Iterator[list[int]]:
    """Sizes of the rows that are packed."""
    sizes: list[int] = []
    real = TransformersBackend.capture_packed

    def count(self: TransformersBackend, pack: object, *rest: object) -> Tensor:
        sizes.append(len(pack.ids))  # type: ignore[attr-defined]
        return real(self, pack, *rest)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TransformersBackend, "capture_packed", count)
        yield sizes


@settings(max_examples=15, deadline=None)
@given(rows=prompts(), kind=st.sampled_from(EXACT), budget=st.integers(1, 300))
def test_packed_is_one_by_one_at_every_hook_point(
    rows: list[Rendered], kind: str, budget: int
) -> None:
    model = MODELS[kind]
    backend = TransformersBackend(model)
    found = capture_rows(backend, rows, EVERY, pad_id=0, token_budget=budget)
    torch.testing.assert_close(found, alone(backend, rows, EVERY), rtol=0, atol=1e-10)


@settings(max_examples=15, deadline=None)
@given(rows=prompts(), kind=st.sampled_from(EXACT), data=st.data())
def test_any_spans_are_the_means_of_transformers_own_states(
    rows: list[Rendered], kind: str, data: st.DataObject
) -> None:
    def span(one: Rendered) -> Span:
        start = data.draw(st.integers(0, len(one.ids) - 1))
        return Span(start, data.draw(st.integers(start + 1, len(one.ids))))

    model = MODELS[kind]
    spans = [[span(one), span(one)] for one in rows]
    read = [Site("resid_post", 1), Site("resid_pre", 0), Site("resid_post", 0)]
    found = capture_spans(open_backend(model), rows, spans, read, pad_id=0, token_budget=200)
    for i, one in enumerate(rows):
        of_row = states(model, one)
        for p, (start, stop) in enumerate(spans[i]):
            wanted = torch.stack([of_row[entry][0, start:stop].mean(0) for entry in (2, 0, 1)])
            # transformers casts what a padded prompt, beyond the window, is averaged in.
            close = 1e-10 if len(one.ids) <= 40 or kind != "gemma3" else 1e-6
            torch.testing.assert_close(found[p][i], wanted, rtol=0, atol=close)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-4), (torch.bfloat16, 0.4)])
def test_other_dtypes(kind: str, dtype: torch.dtype, close: float) -> None:
    model = make(kind).to(dtype)
    backend = TransformersBackend(model)
    points = [Site("resid_post", layer) for layer in range(3)]
    with counting() as sizes:
        found = capture_rows(backend, some(), points, pad_id=0)
    assert found.dtype == dtype and sizes
    torch.testing.assert_close(found, alone(backend, some(), points), rtol=0, atol=close)


@pytest.mark.parametrize("kind", EXACT)
def test_leaking_attention_would_be_seen(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Positive control. Found out before it is used, and far from the truth where it is not."""
    real = attention._looped

    def leaking(plan: Plan, q: Tensor, k: Tensor, v: Tensor, scaling: float | None) -> Tensor:
        whole = pack([row([0] * len(q))])
        return real(Plan(whole, loop=True), q, k, v, scaling)

    monkeypatch.setattr(attention, "_looped", leaking)
    model, points = make(kind).double(), [Site("resid_post", 2)]
    backend = TransformersBackend(model)
    wanted = alone(backend, some(), points)
    with counting() as sizes:
        found = capture_rows(backend, some(), points, pad_id=0)
    assert not sizes
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)
    monkeypatch.setattr(TransformersBackend, "packable", lambda self, longest: longest)
    found = capture_rows(backend, some(), points, pad_id=0)
    assert float((found - wanted).abs().max()) > 0.1


def test_what_is_read_beside_changes_nothing_to_the_last_bit(family: str) -> None:
    backend = open_backend(make_model(family))
    rows = some()
    columns = [
        [Span(one.position, one.position + 1) for one in rows],
        [Span(0, len(one.ids)) for one in rows],
        [Span(0, 1) for one in rows],
    ]
    for points in (EVERY, [Site("resid_post", 2)]):
        together = capture_spans(
            backend, rows, list(zip(*columns, strict=True)), points, pad_id=0, token_budget=150
        )
        assert float((together[0] - together[1]).abs().max()) > 0.1
        for column, beside in zip(columns, together, strict=True):
            (by_itself,) = capture_spans(
                backend, rows, [[one] for one in column], points, pad_id=0, token_budget=150
            )
            assert torch.equal(by_itself, beside)
        last = capture_rows(backend, rows, points, pad_id=0, token_budget=150)
        assert torch.equal(last, together[0])
        again = capture_rows(backend, rows, points, pad_id=0, token_budget=150)
        assert torch.equal(last, again)


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_each_token_is_computed_once_and_the_last_block_for_what_is_read(kind: str) -> None:
    model = make(kind)
    rows = [row([*HEADERS[1], i, i]) for i in range(5)]
    seen: dict[int, int] = {}

    def count(layer: int) -> object:
        return lambda _module, args: seen.__setitem__(layer, args[0].shape[1])

    backend = open_backend(model)
    assert isinstance(backend, PackingBackend) and backend.packable(30)
    for layer, block in enumerate(model.model.layers):
        block.mlp.register_forward_pre_hook(count(layer))
    for last, wanted in ((2, {0: 25, 1: 25, 2: 5}), (0, {0: 5})):
        seen.clear()
        capture_rows(backend, rows, [Site("mlp_out", last)], pad_id=0)
        assert seen == wanted
    seen.clear()
    capture_rows(backend, rows, [Site("resid_pre", 2)], pad_id=0)
    assert seen == {0: 25, 1: 25}  # nothing of the block whose input is read


def test_the_model_is_left_as_it_was(family: str) -> None:
    model = make_model(family)
    model.train()
    model.set_attn_implementation("eager")
    config = str(model.config)
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}

    def hooks() -> int:
        return sum(
            len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()
        )  # fmt: skip

    backend = open_backend(model)
    with counting() as sizes:
        capture_rows(backend, some(), EVERY, pad_id=0)
    assert sizes

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    handle = model.model.layers[1].mlp.down_proj.register_forward_hook(fail)
    with pytest.raises(ZeroDivisionError):
        capture_rows(backend, some(), EVERY, pad_id=0)
    handle.remove()
    assert hooks() == 0 and model.training and all(m.training for m in model.modules())
    assert model.config._attn_implementation == "eager" and str(model.config) == config
    assert all(torch.equal(weights[name], it) for name, it in model.state_dict().items())
    assert attention._PLAN.get(None) is None


def test_every_configuration_is_put_back() -> None:
    model = make_model("llama")
    with pytest.raises(ZeroDivisionError), attending(model.model, Plan(pack([row([1])]), True)):
        assert model.config._attn_implementation == NAME
        raise ZeroDivisionError
    assert model.config._attn_implementation == "sdpa"


def test_weights_that_are_offloaded(tmp_path: Path, family: str) -> None:
    """Their last block runs to its end: its weights leave with it."""
    model = make_model(family)
    wanted = alone(TransformersBackend(model), some(), EVERY)
    disk_offload(model, str(tmp_path), execution_device=torch.device("cpu"))
    backend = TransformersBackend(model)
    with counting() as sizes:
        found = capture_rows(backend, some(), EVERY, pad_id=0)
    assert sizes and not backend._tails
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
    assert all(weight.is_meta for weight in model.parameters())


# Attention


def slow(q: Tensor, k: Tensor, v: Tensor, rows: list[Rendered], scaling: float) -> Tensor:
    """Oracle: softmax in a loop over prompts, heads and tokens."""
    packed = pack(rows)
    out = torch.full((len(q), q.shape[1], v.shape[2]), torch.nan, dtype=q.dtype)
    groups = q.shape[1] // k.shape[1]
    for path in packed.paths:
        for t, slot in enumerate(path.tolist()):
            for head in range(q.shape[1]):
                seen = path[: t + 1]
                weights = (k[seen, head // groups] @ q[slot, head] * scaling).softmax(0)
                out[slot, head] = weights @ v[seen, head // groups]
    return out


@pytest.mark.parametrize(("heads", "kv_heads", "d_value"), [(4, 4, 8), (4, 2, 8), (6, 1, 4)])
@pytest.mark.parametrize("loop", [True, False])
def test_attention_within_each_prompt(heads: int, kv_heads: int, d_value: int, loop: bool) -> None:
    unordered = some(9)
    rows = [unordered[i] for i in in_order(unordered)]
    packed = pack(rows)
    assert any(one.shared for one in packed.segments)
    generator = torch.Generator().manual_seed(0)
    n = len(packed.ids)
    q, k, v = (
        torch.randn(n, *shape, generator=generator, dtype=torch.float64)
        for shape in ((heads, 8), (kv_heads, 8), (kv_heads, d_value))
    )
    model = make_model("llama")
    plan = Plan(packed, loop=loop)
    with attending(model.model, plan):
        batched = (it.transpose(0, 1)[None] for it in (q, k, v))
        found, weights = attention.attend(model.model.layers[0].self_attn, *batched, scaling=0.3)
    assert weights is None and plan.calls == 1
    torch.testing.assert_close(found[0], slow(q, k, v, rows, 0.3), rtol=0, atol=1e-12)


def test_segments_attend_together_if_of_like_length() -> None:
    lengths = [100, 90, 80, 20, 19, 5, 100]
    packed = pack([row([i] * n) for i, n in enumerate(lengths)])
    batches = together(packed.segments, torch.device("cpu"))
    assert [batch.real.sum(1).tolist() for batch in batches] == [[100, 100, 90, 80], [20, 19], [5]]
    slots = torch.cat([batch.queries[batch.real] for batch in batches])
    assert slots.sort().values.tolist() == list(range(sum(lengths)))
    # Thousands that share a long header gather its keys some at a time.
    many = pack([row([*range(200), 300 + i]) for i in range(100)])
    for batch in together(many.segments, torch.device("cpu")):
        assert batch.keys.numel() <= 4 * 300 + 8 * len(batch.keys)
    assert triangle(3, q := torch.zeros(1)).tolist()[0] == [0, -torch.inf, -torch.inf]
    assert triangle(3, q)[2].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    "kwargs", [{"softcap": 20.0}, {"s_aux": torch.zeros(4)}, {"attention_mask": torch.ones(1)},
               {"is_causal": False}]
)  # fmt: skip
def test_other_attention_is_refused(kwargs: dict[str, object]) -> None:
    model = make_model("llama")
    packed = pack([row(range(9))])
    heads = torch.zeros(1, 4, 9, 8)
    layer = model.model.layers[0].self_attn
    with attending(model.model, Plan(packed, loop=True)):
        attention.attend(layer, heads, heads, heads, softcap=None)
        with pytest.raises(UnpackableError):
            attention.attend(layer, heads, heads, heads, **kwargs)  # type: ignore[arg-type]
        with pytest.raises(UnpackableError, match="other tokens"):
            attention.attend(layer, heads, twice := heads.repeat(1, 1, 2, 1), twice)
