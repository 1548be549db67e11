"""L = alpha NLL + beta KL(pi_ref || pi_theta), exact, and no [token, vocab] tensor for it.

The loss of arXiv 2602.17546 over answer tokens. With a linear head, z = W h + b, a token's
distribution q = softmax(z) is an exponential family in the hidden state h, with log-partition

    A(h) = log sum_v exp z_v,    whose gradient is E_q[w], the mean of the head's rows under q.

So the forward KL to p = softmax(W h_ref + b) is the Bregman divergence of A:

    KL(p || q) = A(h) - <h, mu> + c,    mu = E_p[w],    c = -H(p) - <p, b>

and mu and c are constants: d_model + 1 numbers a token, computed once (`moments`), stand for the
whole reference distribution. Loss and gradient

    L      = alpha (A - z_y) + beta (A - <h, mu> + c)
    dL/dh  = (alpha + beta) E_q[w] - alpha w_y - beta mu

need one pass over the head, as the NLL alone does: the KL costs nothing more. That holds while the
head is frozen and shared with the reference. Otherwise, and for the reverse KL, the reference's
hidden states are given (`Hidden`), and its logits are computed beside the policy's.

A and E_q[w] are sums over the vocabulary, taken some rows of the head at a time for some answer
tokens at a time: each of these rows is used for the logits and for the mean while it is in the
cache. Where logits are needed together (a trained head, or hidden states as the reference), all of
some answer tokens are, and the gradients are formed in the same pass. A [token, vocab] tensor never
lives.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probes.onednn import product
from regularize.defences import Direction

CHUNK = {"cpu": 2**20, "cuda": 2**27}
"""Logits that are formed at once, by kind of device: small enough for a CPU's cache to help."""
TILE = {"cpu": 2**11, "cuda": 2**14}
"""Rows of the head in one step of the sums over the vocabulary."""
LEAST = 128
"""Tokens in one pass over the head, where it is left to us: with fewer, reading it takes longer
than multiplying."""


class Head(NamedTuple):
    """The linear map from the last hidden state to the logits."""

    weight: Float[Tensor, "vocab d_model"]
    bias: Float[Tensor, "vocab"] | None = None


class Moments(NamedTuple):
    """All that the forward KL needs to know of the reference, at a frozen, shared head."""

    mu: Float[Tensor, "token d_model"]
    """E_p[w]: the mean of the head's rows under the reference's distribution."""
    c: Float[Tensor, "token"]
    """-H(p) - <p, b>, nats."""


class Hidden(NamedTuple):
    """The reference by its last hidden states and its own head."""

    hidden: Float[Tensor, "token d_model"]
    head: Head


Factor = Callable[[Float[Tensor, "token"], slice], Float[Tensor, "token"]]
"""NLL of some of the tokens (nats), and which they are -> what their alpha is multiplied by."""


class Terms(NamedTuple):
    """A loss and its parts."""

    loss: Float[Tensor, ""]
    """sum over tokens of alpha NLL + beta KL, nats; divide it by the step's answer tokens."""
    nll: Float[Tensor, "token"]
    """Nats, without gradient."""
    kl: Float[Tensor, "token"]
    """Nats, without gradient; zero without a reference."""


def regularized(
    hidden: Float[Tensor, "token d_model"],
    head: Head,
    target: Int[Tensor, "token"],
    alpha: Float[Tensor, "token"],
    beta: Float[Tensor, "token"],
    reference: Moments | Hidden | None = None,
    *,
    direction: Direction = "forward",
    factor: Factor | None = None,
    chunk: int | None = None,
) -> Terms:
    """sum over tokens of alpha NLL + beta KL (arXiv 2602.17546; its letters).

    Args:
        hidden: The policy's last hidden states (after the final norm) where the next token is an
            answer's.
        head: Of the policy. Gets gradients where it requires them.
        target: The answer's tokens.
        alpha: Weight of a token's NLL.
        beta: Weight of a token's KL to the reference.
        reference: None where all of beta is zero. `Moments` hold for a frozen head only.
        direction: forward KL(pi_ref || pi_theta), the paper's; or reverse KL(pi_theta || pi_ref).
        factor: Of alpha, by the NLL itself, which is known before the gradient is formed. It is
            taken as a constant: no gradient flows through it.
        chunk: Tokens in one pass over the head; None to choose by vocabulary and device.

    Raises:
        ValueError: beta needs a reference that is not given, or one that does not hold here.
    """
    if reference is None and bool((beta != 0).any()):
        raise ValueError("beta is not zero, so that a reference is needed")
    if isinstance(reference, Moments):
        if direction == "reverse":
            raise ValueError("the reverse KL needs the reference's hidden states, not its moments")
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in head):
            raise ValueError("moments belong to one head, but this one is being trained")
    tensors: list[Tensor | None] = [hidden, *head]
    if not torch.is_grad_enabled():  # which a Function is not told, and would find gradients
        tensors = [None if t is None else t.detach() for t in tensors]
    if isinstance(reference, Hidden) and direction == "forward" and _same(reference.head, head):
        # Four products with the head instead of three, but far fewer passes over logits.
        reference = moments(reference.hidden, head, chunk=chunk)
    given = (target, alpha, beta, reference, direction, factor, chunk)
    return Terms(*_Regularized.apply(*tensors, *given))


@torch.no_grad()
def moments(
    hidden: Float[Tensor, "token d_model"], head: Head, *, chunk: int | None = None
) -> Moments:
    """What stands for the reference at these tokens: mean head row and negative entropy.

    By the same arithmetic as the policy's in `regularized`, so that at the reference itself the
    two cancel.
    """
    wide = _wide(hidden.dtype)
    mu = hidden.new_empty(hidden.shape, dtype=wide)
    c = hidden.new_empty(len(hidden), dtype=wide)
    chunk = chunk or _chunk(hidden, _tile(hidden, head))
    for start in range(0, len(hidden), chunk):
        rows = slice(start, start + chunk)
        log_partition, mu[rows], _ = _sums(hidden[rows], head)
        c[rows] = _dot(hidden[rows], mu[rows]) - log_partition
    return Moments(mu, c)


class _Regularized(torch.autograd.Function):
    """Loss and gradient in one pass; backward only scales what forward has found."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        alpha: Tensor,
        beta: Tensor,
        reference: Moments | Hidden | None,
        direction: Direction,
        factor: Factor | None,
        chunk: int | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        head, wide = Head(weight, bias), _wide(hidden.dtype)
        alpha, beta = alpha.to(wide, copy=factor is not None), beta.to(wide)
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        nll, kl = (hidden.new_zeros(len(hidden), dtype=wide) for _ in range(2))
        of_hidden = torch.zeros_like(hidden, dtype=wide) if needs_hidden else None
        of_weight = torch.zeros_like(weight, dtype=wide) if needs_weight else None
        of_bias = torch.zeros_like(bias, dtype=wide) if needs_bias and bias is not None else None
        together = needs_weight or needs_bias or isinstance(reference, Hidden)
        chunk = chunk or _chunk(hidden, len(weight) if together else _tile(hidden, head))

        for start in range(0, len(hidden), chunk):
            rows = slice(start, start + chunk)
            h, y, a, b = hidden[rows], target[rows], alpha[rows], beta[rows]
            if not together:
                log_partition, mean, z_y = _sums(h, head, y, mean=needs_hidden)
                nll[rows] = log_partition - z_y
                if factor is not None:
                    a *= factor(nll[rows], rows)
                if isinstance(reference, Moments):
                    mu, c = reference.mu[rows], reference.c[rows]
                    kl[rows] = log_partition - _dot(h, mu) + c.to(wide)
                if of_hidden is not None:
                    w_y = torch.nn.functional.embedding(y, weight)
                    gradient = mean.mul_((a + b)[:, None]).sub_(w_y * a[:, None])
                    if isinstance(reference, Moments):
                        gradient.sub_(mu * b[:, None])
                    of_hidden[rows] = gradient
                continue

            log_q = torch.log_softmax(_logits(h, head), dim=-1)
            nll[rows] = -log_q.gather(1, y[:, None])[:, 0]
            if factor is not None:
                a *= factor(nll[rows], rows)
            if isinstance(reference, Hidden):
                # Of the reference p; where beta is zero its share of the gradient is zero too.
                log_p = torch.log_softmax(_logits(reference.hidden[rows], reference.head), dim=-1)
                of_logits, kl[rows] = _divergence(log_p, log_q, a, b, direction)
            else:
                of_logits = log_q.exp_().mul_(a[:, None])
            of_logits.scatter_add_(1, y[:, None], -a[:, None])
            if of_hidden is not None:
                of_hidden[rows] = _matmul(of_logits, weight)
            if of_weight is not None:
                # Over tokens, of which there are others each time: see `product`.
                of_weight += _matmul(of_logits.T, h, torch.mm)
            if of_bias is not None:
                of_bias += of_logits.sum(0)

        ctx.save_for_backward(of_hidden, of_weight, of_bias)
        ctx.dtypes = hidden.dtype, weight.dtype, None if bias is None else bias.dtype
        ctx.mark_non_differentiable(nll, kl)
        return (alpha * nll + beta * kl).sum(), nll, kl

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        found = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        scaled = [None if t is None else (t * gradients[0]).to(dtype) for t, dtype in found]
        return (*scaled, *[None] * 7)


def _divergence(
    log_p: Tensor, log_q: Tensor, alpha: Tensor, beta: Tensor, direction: Direction
) -> tuple[Tensor, Tensor]:
    """alpha q plus beta times the KL's gradient in the logits, [token, vocab]; the KL, [token].

    forward: q - p.  reverse: q (log q - log p - KL).
    """
    q, p = log_q.exp(), log_p.exp()
    if direction == "forward":
        kl = (p * log_p.sub_(log_q)).sum(-1)
        return q.mul_((alpha + beta)[:, None]).sub_(p.mul_(beta[:, None])), kl
    ratio = log_q.sub_(log_p)
    kl = (q * ratio).sum(-1)
    return q * ratio.sub_(kl[:, None]).mul_(beta[:, None]).add_(alpha[:, None]), kl


def _sums(
    hidden: Tensor, head: Head, target: Tensor | None = None, *, mean: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """A, E_q[w] and z_y, with the head read once.

    What is summed is rescaled as larger logits turn up (arXiv 1805.02867). z_y is NaN where it is
    not asked for, or not in the vocabulary.
    """
    n, wide, tile = len(hidden), _wide(hidden.dtype), _tile(hidden, head)
    largest = hidden.new_full((n,), -torch.inf, dtype=wide)
    z_y = hidden.new_full((n,), torch.nan, dtype=wide)
    total = hidden.new_zeros(n, dtype=wide)
    summed = hidden.new_zeros(hidden.shape, dtype=wide)
    for start in range(0, len(head.weight), tile):
        rows = slice(start, start + tile)
        part = Head(head.weight[rows], None if head.bias is None else head.bias[rows])
        z = _logits(hidden, part)
        if target is not None:
            place = target - start
            here = (place >= 0) & (place < z.shape[1])
            place = place.clamp(0, z.shape[1] - 1)
            z_y = torch.where(here, z.gather(1, place[:, None])[:, 0], z_y)
        before, largest = largest, torch.maximum(largest, z.amax(-1))
        rescale = (before - largest).exp_()
        z.sub_(largest[:, None]).exp_()
        total.mul_(rescale).add_(z.sum(-1))
        if mean:
            summed.mul_(rescale[:, None]).add_(_matmul(z, part.weight))
    return largest + total.log(), summed.div_(total[:, None]), z_y


def _same(a: Head, b: Head) -> bool:
    """Whether they are one head, and frozen."""
    frozen = not any(t is not None and t.requires_grad for t in a)
    return frozen and a.weight is b.weight and a.bias is b.bias


def _tile(hidden: Tensor, head: Head) -> int:
    """Rows of the head in one step of the sums."""
    return min(TILE.get(hidden.device.type, TILE["cuda"]), len(head.weight))


def _chunk(hidden: Tensor, logits: int) -> int:
    """Tokens in one pass over the head, when so many logits of each are formed at once."""
    return max(LEAST, CHUNK.get(hidden.device.type, CHUNK["cuda"]) // logits)


def _logits(hidden: Tensor, head: Head) -> Tensor:
    z = _matmul(hidden, head.weight.T)
    return z if head.bias is None else z.add_(head.bias)


def _matmul(a: Tensor, b: Tensor, multiply: Callable[[Tensor, Tensor], Tensor] = product) -> Tensor:
    """a @ b in b's number format, accumulated and, where the device can, given in float32."""
    a = a.to(b.dtype)
    if b.dtype in (torch.float32, torch.float64):
        return multiply(a, b)
    if b.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32)
    return (a @ b).float()


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Row-wise <a, b>, summed in float64: the KL is a small difference of large numbers."""
    wider = torch.float32 if a.device.type == "mps" else torch.float64  # which Metal has not
    return (a.to(wider) * b).sum(-1).to(_wide(a.dtype))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
