"""The fused loss is the textbook's, in value and gradient, and never holds [token, vocab]."""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from regularize import losses
from regularize.losses import Head, Hidden, Moments, Terms, moments, regularized

Case = tuple[str, str]
KINDS: tuple[Case, ...] = (("forward", "moments"), ("forward", "hidden"), ("reverse", "hidden"))


@pytest.fixture(autouse=True, scope="module", params=[7, losses.TILE["cpu"]])
def _tile(request: pytest.FixtureRequest) -> Iterator[None]:
    """Few rows of the head at a time, and as many as are taken by default."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(losses.TILE, "cpu", request.param)
        yield


class Problem(NamedTuple):
    """Random inputs, in float64."""

    hidden: Tensor
    head: Head
    target: Tensor
    alpha: Tensor
    beta: Tensor
    ref_hidden: Tensor
    ref_head: Head

    def reference(self, kind: str) -> Moments | Hidden:
        if kind == "moments":
            return moments(self.ref_hidden, self.head)
        return Hidden(self.ref_hidden, self.ref_head)

    def to(self, dtype: torch.dtype) -> "Problem":
        """Hidden states and heads in a number format; the weights of the loss stay."""

        def cast(x):
            return None if x is None else x.detach().to(dtype)

        head = Head(*map(cast, self.head))
        shared = self.ref_head is self.head
        return self._replace(
            hidden=cast(self.hidden),
            head=head,
            ref_hidden=cast(self.ref_hidden),
            ref_head=head if shared else Head(*map(cast, self.ref_head)),
        )

    def leaves(self, *, trains_head: bool) -> list[Tensor]:
        """What gets gradients."""
        found = [self.hidden, *(t for t in self.head if t is not None and trains_head)]
        return [t.requires_grad_() for t in found]


def problem(
    n: int = 13,
    d: int = 7,
    vocab: int = 31,
    *,
    bias: bool = False,
    own_head: bool = False,
    scale: float = 1.0,
    drift: float = 0.5,
    seed: int = 0,
) -> Problem:
    """A policy that has drifted from a reference; `own_head`: the heads differ too."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    hidden, weight = random(n, d), scale * random(vocab, d)
    head = Head(weight, scale * random(vocab) if bias else None)
    ref_head = Head(*(None if t is None else t + 0.3 * random(*t.shape) for t in head))
    return Problem(
        hidden,
        head,
        torch.randint(vocab, (n,), generator=generator),
        torch.rand(n, generator=generator, dtype=torch.float64),
        torch.rand(n, generator=generator, dtype=torch.float64),
        hidden + drift * random(n, d),
        ref_head if own_head else head,
    )


class Naive(NamedTuple):
    loss: Tensor
    nll: Tensor
    kl: Tensor


def naive(p: Problem, direction: str) -> Naive:
    """The textbook: full logits, log-softmax, torch's own cross-entropy."""

    def log_probabilities(hidden, head):
        logits = torch.nn.functional.linear(hidden, *head)
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)

    log_q = log_probabilities(p.hidden, p.head)
    log_p = log_probabilities(
        p.ref_hidden, Head(*(t.detach() for t in p.ref_head if t is not None))
    )
    first, second = (log_p, log_q) if direction == "forward" else (log_q, log_p)
    kl = (first.exp() * (first - second)).sum(-1)
    nll = torch.nn.functional.nll_loss(log_q, p.target, reduction="none")
    return Naive((p.alpha * nll + p.beta * kl).sum(), nll, kl)


def fused(p: Problem, case: Case, **options) -> Terms:
    direction, kind = case
    reference = p.reference(kind)
    return regularized(
        p.hidden, p.head, p.target, p.alpha, p.beta, reference, direction=direction, **options
    )


def assert_same(p: Problem, case: Case, *, trains_head: bool, **options) -> None:
    """Loss, terms and all gradients, also through what is multiplied to the loss afterwards."""
    leaves = p.leaves(trains_head=trains_head)
    ours, theirs = fused(p, case, **options), naive(p, case[0])
    for name in Naive._fields:
        found, wanted = getattr(ours, name), getattr(theirs, name)
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-10, msg=name)
    gradients = [torch.autograd.grad(x.loss * -2.5, leaves) for x in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-10)


# The formula


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("case", KINDS, ids="-".join)
def test_it_is_the_textbooks_loss(case: Case, bias: bool) -> None:
    for vocab, chunk in itertools.product((2, 31, 257), (1, 2, 5, 12, 13, 14, None)):
        for own_head in {False, "hidden" in case}:
            p = problem(vocab=vocab, bias=bias, own_head=own_head)
            assert_same(p, case, trains_head=False, chunk=chunk)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_it_is_the_textbooks_loss_when_the_head_is_trained(direction: str, bias: bool) -> None:
    for chunk in (1, 4, None):
        p = problem(bias=bias, own_head=True)
        assert_same(p, (direction, "hidden"), trains_head=True, chunk=chunk)


def test_the_comparison_sees_small_faults() -> None:
    """Positive control: what the tolerance above must tell apart."""
    p = problem()
    leaves = p.leaves(trains_head=True)
    for wrong in (
        p._replace(beta=p.beta * (1 + 1e-7)),
        p._replace(alpha=p.alpha.flip(0)),
        p._replace(target=p.target.roll(1)),
        p._replace(ref_hidden=p.ref_hidden.roll(1, 0)),
    ):
        right = torch.autograd.grad(naive(p, "forward").loss, leaves)
        with pytest.raises(AssertionError):
            found = torch.autograd.grad(naive(wrong, "forward").loss, leaves)
            torch.testing.assert_close(found, right, rtol=1e-9, atol=1e-10)
    assert not torch.allclose(naive(p, "forward").kl, naive(p, "reverse").kl, rtol=0.01)


def test_only_the_bias_or_only_the_weight_may_be_trained() -> None:
    for chosen in range(2):
        p = problem(bias=True, own_head=True)
        leaf = p.head[chosen].requires_grad_()
        found, wanted = (
            torch.autograd.grad(x.loss, leaf)[0]
            for x in (fused(p, ("forward", "hidden"), chunk=5), naive(p, "forward"))
        )
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-10)


@settings(max_examples=80, deadline=None)
@given(
    n=st.integers(1, 20),
    d=st.integers(1, 9),
    vocab=st.integers(1, 40),
    chunk=st.integers(1, 24),
    case=st.sampled_from(KINDS),
    bias=st.booleans(),
    alpha=st.lists(st.sampled_from([0.0, 0.1, 1.0, 1.7]), min_size=20, max_size=20),
    beta=st.lists(st.sampled_from([0.0, 0.0, 0.3, 1.0]), min_size=20, max_size=20),
    seed=st.integers(0, 999),
)
def test_it_is_the_textbooks_loss_at_any_shape_and_weights(
    n: int, d: int, vocab: int, chunk: int, case: Case, bias: bool, alpha, beta, seed: int
) -> None:
    p = problem(n, d, vocab, bias=bias, own_head=case[1] == "hidden", seed=seed)
    p = p._replace(alpha=torch.tensor(alpha[:n]).double(), beta=torch.tensor(beta[:n]).double())
    assert_same(p, case, trains_head=case[1] == "hidden", chunk=chunk)


@pytest.mark.parametrize("case", KINDS, ids="-".join)
def test_the_gradient_is_the_slope(case: Case) -> None:
    """By finite differences, without any formula of a gradient."""
    p = problem(4, 3, 5, bias=True, own_head=case[1] == "hidden")
    leaves = p.leaves(trains_head=case[1] == "hidden")
    reference = p.reference(case[1]) if case[1] == "moments" else Hidden(p.ref_hidden, p.ref_head)

    def loss(hidden, weight=p.head.weight, bias=p.head.bias):
        weights = (p.target, p.alpha, p.beta)
        head = Head(weight, bias)
        return regularized(hidden, head, *weights, reference, direction=case[0], chunk=3).loss

    assert torch.autograd.gradcheck(loss, leaves)


# The KL is a divergence


@settings(max_examples=40, deadline=None)
@given(
    case=st.sampled_from(KINDS),
    seed=st.integers(0, 999),
    drift=st.sampled_from([0.0, 1e-4, 0.1, 3.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_the_kl_is_not_negative_and_zero_at_the_reference(
    case: Case, seed: int, drift: float, dtype: torch.dtype
) -> None:
    kl = fused(problem(drift=drift, seed=seed).to(dtype), case).kl
    rounding = 50 * torch.finfo(dtype).eps
    assert float(kl.min()) > -rounding
    if drift == 0:
        assert float(kl.abs().max()) < rounding
    if drift == 3:
        assert float(kl.min()) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_at_the_reference_the_moments_cancel(dtype: torch.dtype) -> None:
    for chunk in (3, None):
        p = problem(200, 16, 300, drift=0.0).to(dtype)
        kl = regularized(
            p.hidden, p.head, p.target, p.alpha, p.beta, p.reference("moments"), chunk=chunk
        ).kl
        assert float(kl.abs().max()) < 1e-5


# Edges


@pytest.mark.parametrize("case", [*KINDS, None], ids=str)
def test_no_token_has_no_loss_and_no_gradient(case: Case | None) -> None:
    p = problem(0, bias=True)
    leaves = p.leaves(trains_head=case is None or case[1] == "hidden")
    if case is None:
        terms = regularized(p.hidden, p.head, p.target, p.alpha, p.beta)
    else:
        terms = fused(p, case)
    terms.loss.backward()
    assert terms.loss.item() == 0 and terms.nll.shape == terms.kl.shape == (0,)
    for leaf in leaves:
        assert torch.equal(leaf.grad, torch.zeros_like(leaf))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", KINDS, ids="-".join)
def test_very_confident_logits_neither_overflow_nor_give_nan(
    case: Case, dtype: torch.dtype
) -> None:
    p = problem(bias=True)
    largest = float(torch.nn.functional.linear(p.hidden, *p.head).abs().max())
    scaled = Head(*(1e4 / largest * t for t in p.head))
    p = p._replace(head=scaled, ref_head=scaled, ref_hidden=p.hidden.flip(0))
    exact = naive(p, case[0])
    assert float(exact.kl.max()) > 1e3
    p = p.to(dtype)
    p.hidden.requires_grad_()
    terms = fused(p, case)
    terms.loss.backward()
    assert all(bool(t.isfinite().all()) for t in (*terms, p.hidden.grad))
    # A logit is a sum of products: a number format's error grows with their size.
    rounding = 1e4 * 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(terms.nll.double(), exact.nll, rtol=0, atol=rounding)
    torch.testing.assert_close(terms.kl.double(), exact.kl, rtol=0, atol=rounding)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("case", KINDS, ids="-".join)
def test_low_precision_costs_no_more_than_in_the_textbooks_way(
    case: Case, dtype: torch.dtype
) -> None:
    exact_p = problem(300, 64, 1001, scale=0.3, drift=0.3).to(dtype).to(torch.float64)
    low_p = exact_p.to(dtype)

    def of(p: Problem, loss_of) -> dict[str, Tensor]:
        p.hidden.requires_grad_()
        terms = loss_of(p)
        (gradient,) = torch.autograd.grad(terms.loss, p.hidden)
        found = {"nll": terms.nll, "kl": terms.kl, "gradient": gradient}
        return {name: t.detach().double() for name, t in found.items()}

    exact = of(exact_p, lambda p: naive(p, case[0]))
    theirs = of(low_p, lambda p: naive(p, case[0]))
    ours = of(low_p, lambda p: fused(p, case, chunk=77))
    errors = {name: (theirs[name] - wanted).norm() for name, wanted in exact.items()}
    if case[0] == "forward":  # a difference of log-partitions: as exact as the NLL is
        errors["kl"] = errors["nll"]
    for name, wanted in exact.items():
        allowed = 1.2 * errors[name] + 2 * torch.finfo(torch.float32).eps * wanted.norm()
        assert float((ours[name] - wanted).norm()) <= float(allowed), name
        # Positive control: what is allowed is a low error, not any error.
        assert float(allowed) < 0.05 * float(wanted.norm()), name


def test_tokens_with_and_without_beta_do_not_disturb_each_other() -> None:
    """Wherever chunks begin, a token's NLL and KL are its own, and its KL is told at beta 0 too."""
    for case, chunk in itertools.product(KINDS, (1, 3, 13)):
        p = problem()
        p = p._replace(beta=p.beta * (torch.arange(13) > 6))
        terms = fused(p, case, chunk=chunk)
        torch.testing.assert_close(terms.kl, naive(p, case[0]).kl, rtol=1e-9, atol=1e-10)


def test_what_does_not_hold_is_refused() -> None:
    p = problem()
    given_ = (p.hidden, p.head, p.target, p.alpha)
    with pytest.raises(ValueError, match="a reference is needed"):
        regularized(*given_, p.beta)
    with pytest.raises(ValueError, match="reverse KL needs the reference's hidden states"):
        regularized(*given_, p.beta, p.reference("moments"), direction="reverse")
    p.head.weight.requires_grad_()
    with pytest.raises(ValueError, match="moments belong to one head"):
        regularized(*given_, p.beta, p.reference("moments"))
    # What holds: no beta without a reference, and a trained head that is only evaluated.
    terms = regularized(*given_, torch.zeros_like(p.beta))
    torch.testing.assert_close(terms.loss, (p.alpha * naive(p, "forward").nll).sum())
    assert not terms.kl.any()
    with torch.no_grad():
        regularized(*given_, p.beta, p.reference("moments"))


# Memory


class Largest(TorchDispatchMode):
    """Records the size of the largest tensor that any operation returns."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sizes = [t.numel() for t in tree_leaves(result) if isinstance(t, Tensor)]
        self.numel = max([self.numel, *sizes])
        return result


@pytest.mark.parametrize(
    ("case", "trains_head"),
    [(case, False) for case in KINDS] + [(case, True) for case in KINDS if "hidden" in case],
)
def test_no_tensor_of_all_tokens_and_the_whole_vocabulary_lives(
    case: Case, trains_head: bool
) -> None:
    n, d, vocab, chunk = 96, 6, 501, 8
    p = problem(n, d, vocab, bias=True, own_head=trains_head)
    p.leaves(trains_head=trains_head)
    reference = p.reference(case[1])

    with Largest() as ours:
        regularized(
            p.hidden, p.head, p.target, p.alpha, p.beta, reference, direction=case[0], chunk=chunk
        ).loss.backward()
    assert ours.numel <= chunk * vocab
    with Largest() as of_moments:
        moments(p.ref_hidden, p.head, chunk=chunk)
    assert of_moments.numel <= chunk * vocab
    with Largest() as theirs:  # positive control
        naive(p, case[0]).loss.backward()
    assert theirs.numel == n * vocab


@pytest.mark.parametrize("case", KINDS, ids="-".join)
def test_what_lives_at_once_is_bounded_where_it_is_left_to_the_loss(case: Case) -> None:
    n, vocab = 300, 2**14
    p = problem(n, 2, vocab, own_head="hidden" in case).to(torch.float32)
    p.hidden.requires_grad_()
    with Largest() as ours:
        found = fused(p, case)
    assert ours.numel <= max(losses.CHUNK["cpu"], losses.LEAST * vocab) < n * vocab
    torch.testing.assert_close(found.loss.double(), naive(p, case[0]).loss, rtol=1e-5, atol=0)
