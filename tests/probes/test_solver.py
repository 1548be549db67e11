"""The solver finds scikit-learn's optimum, in every regime, and proves it by its gradient."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from probes import solver
from probes.features import Features, Stacked
from probes.solver import Design, solve


def design_of(x: torch.Tensor) -> Design:
    curvature = x.square().sum(0)
    return Design(lambda: [(slice(0, len(x)), x)], curvature, float(x.norm(dim=1).max()))


def fitted(x: torch.Tensor, y: torch.Tensor, C: list[float], counts=None) -> np.ndarray:
    counts = torch.ones(len(y), len(C)).double() if counts is None else counts
    found = solve(design_of(x), y, counts, torch.tensor(C).double())
    return expit((x @ found.weight + found.bias).numpy())


def oracle(x: torch.Tensor, y: torch.Tensor, C: float, counts=None) -> np.ndarray:
    model = LogisticRegression(C=C, tol=1e-10, max_iter=100_000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(x.numpy(), y.numpy(), sample_weight=counts)
    return model.predict_proba(x.numpy())[:, 1]


def data(n: int, d: int, gap: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    x = x @ torch.randn(d, d, generator=generator, dtype=torch.float64) / d**0.5
    return x + gap * (y[:, None] - 0.5) * torch.randn(d, generator=generator).double(), y


@pytest.mark.parametrize(
    ("n", "d", "gap"),
    [(300, 10, 0.3), (60, 150, 0.3), (200, 10, 8.0), (60, 150, 5.0), (8, 3, 0.5), (4, 1, 0.0)],
    ids=["tall", "wide", "tall-separable", "wide-separable", "tiny", "four-rows"],
)
def test_probabilities_are_sklearns(n, d, gap):
    x, y = data(n, d, gap)
    Cs = [1e-4, 1e-2, 1.0, 100.0]
    for found, C in zip(fitted(x, y, Cs).T, Cs, strict=True):
        np.testing.assert_allclose(found, oracle(x, y, C), atol=1e-4)


def test_a_tenth_more_of_C_would_be_seen():
    """The tolerance above is not slack: C off by a tenth fails it."""
    x, y = data(300, 10, 0.3)
    assert np.abs(fitted(x, y, [0.011])[:, 0] - oracle(x, y, 0.01)).max() > 1e-3


def test_columns_are_the_fits_one_by_one():
    x, y = data(100, 6, 0.5)
    counts = (torch.rand(100, 3, generator=torch.Generator().manual_seed(1)) < 0.7).double()
    counts[:, 2] *= 2
    found = fitted(x, y, [0.1, 1.0, 10.0], counts)
    for k, C in enumerate([0.1, 1.0, 10.0]):
        np.testing.assert_allclose(found[:, k], oracle(x, y, C, counts[:, k].numpy()), atol=1e-5)


def many(n: int = 90, d: int = 7, vectors: int = 6):
    """Label vectors, folds and Cs of many columns over one design."""
    x, y = data(n, d, 0.7)
    rng = np.random.default_rng(2)
    labels = np.stack([rng.permutation(y.numpy()) for _ in range(vectors)], 1).astype(bool)
    labels[:, 0] = y.numpy()
    C = torch.tensor([1e-3, 0.1, 10.0]).double()
    counts = torch.from_numpy(rng.random((n, 3 * vectors)) < 0.8)
    columns = torch.from_numpy(labels).repeat_interleave(3, dim=1)
    return x, columns, counts, C.repeat(vectors)


def test_many_labels_are_sklearns_and_the_fits_one_by_one():
    x, labels, counts, C = many()
    found = solve(design_of(x), labels, counts, C)
    logits = (x @ found.weight + found.bias).numpy()
    for k in range(len(C)):
        y, m = labels[:, k].long(), counts[:, k : k + 1]
        alone = solve(design_of(x), y, m, C[k : k + 1])
        alone_logits = (x @ alone.weight + alone.bias)[:, 0].numpy()
        np.testing.assert_allclose(logits[:, k], alone_logits, atol=2 * solver.LOGIT_TOLERANCE)
        wanted = oracle(x, y, float(C[k]), m[:, 0].double().numpy())
        np.testing.assert_allclose(expit(logits[:, k]), wanted, atol=1e-5)
    # The control: one vector of labels for all columns is another answer.
    shared = solve(design_of(x), labels[:, 0].long(), counts, C)
    assert np.abs((x @ shared.weight + shared.bias).numpy() - logits).max() > 0.1


def test_how_many_columns_go_together_changes_nothing(monkeypatch):
    x, labels, counts, C = many()
    whole = solve(design_of(x), labels, counts, C)
    groups, original = [], solver._minimised
    monkeypatch.setattr(
        solver, "_minimised", lambda p, *rest: (groups.append(p.C), original(p, *rest))[1]
    )
    for at_once, held, table, kept in ((4, 1, 2**16, 0.8), (1, 1, 5, 1.0), (1, 20_000, 50, 0.0)):
        groups.clear()
        monkeypatch.setattr(solver, "AT_ONCE", at_once)
        monkeypatch.setattr(solver, "HELD", held)
        monkeypatch.setattr(solver, "TABLE", table)
        monkeypatch.setattr(solver, "KEPT", kept)
        parts = solve(design_of(x), labels, counts, C)
        assert len(groups) > 1
        assert torch.equal(torch.cat(groups), C.sort().values)
        for one, other in zip(parts, whole, strict=True):
            torch.testing.assert_close(one, other, atol=1e-7, rtol=0)


@pytest.mark.parametrize("tolerance", [1e-3, 1e-5])
def test_no_logit_is_further_off_than_allowed(tolerance):
    x, labels, counts, C = many(200, 60)
    near, exact = (
        solve(design_of(x), labels, counts, C, tolerance=allowed) for allowed in (tolerance, 1e-9)
    )
    off = x @ (near.weight - exact.weight) + near.bias - exact.bias
    assert 0 < float(off.abs().max()) < tolerance


def test_collinear_and_constant_features():
    x, y = data(80, 4, 0.5)
    x = torch.cat([x, x[:, :2], torch.zeros(80, 1)], dim=1)
    np.testing.assert_allclose(fitted(x, y, [1.0])[:, 0], oracle(x, y, 1.0), atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([1e-3, 0.1, 10.0, 1e4]), st.floats(0.0, 20.0))
def test_the_gradient_vanishes(seed, C, gap):
    """The theorem itself, without an oracle: the objective's gradient is zero where it stops."""
    x, y = data(20, 5, gap, seed)
    found = solve(design_of(x), y, torch.ones(20, 1).double(), torch.tensor([C]).double())
    w, b = found.weight.clone().requires_grad_(), found.bias.clone().requires_grad_()
    logits = (x @ w + b)[:, 0]
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, y.double(), reduction="sum")
    gradient = torch.autograd.grad(C * loss + w.square().sum() / 2, (w, b))
    assert max(float(g.abs().max()) for g in gradient) < 1e-5


def test_no_features_leaves_the_intercept():
    y = torch.tensor([0, 0, 0, 1])
    np.testing.assert_allclose(fitted(torch.zeros(4, 0).double(), y, [1.0]), 0.25, atol=1e-6)


def test_one_class_is_refused():
    with pytest.raises(ValueError, match="both classes"):
        fitted(torch.ones(3, 1).double(), torch.ones(3).long(), [1.0])


def test_one_class_is_refused_whichever_the_column():
    x, labels = torch.ones(3, 1).double(), torch.tensor([[0, 1], [1, 1], [1, 1]]).bool()
    with pytest.raises(ValueError, match="both classes"):
        solve(design_of(x), labels, torch.ones(3, 2), torch.ones(2).double())


def test_stopping_early_is_said(monkeypatch):
    monkeypatch.setattr(solver, "MAX_STEPS", 1)
    x, y = data(50, 5, 0.5)
    with pytest.warns(RuntimeWarning, match="1 of 1 logistic fits stopped"):
        fitted(x, y, [1.0])


@pytest.mark.parametrize(("n", "d"), [(40, 60), (90, 15)])
def test_held_rotated_and_streamed_agree(n, d):
    """Whatever memory allows: Gram, covariance, streamed with axes, streamed without."""
    x, y = data(n, d, 0.5)
    features = Features.of(Stacked(x[:, None]), [0], np.ones(n, dtype=bool), "concat")
    weights = []
    for memory in (2**28, 8 * d * d, 8 * d * d - 1, 0):
        rotated = features.design(memory)
        counts, C = torch.ones(n, 1).double(), torch.ones(1).double()
        weights.append(rotated.weight(solve(rotated.design, y, counts, C).weight))
    for other in weights[1:]:
        torch.testing.assert_close(other, weights[0], atol=1e-6, rtol=0)
