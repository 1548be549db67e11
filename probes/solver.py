"""Many L2 logistic regressions over the same rows, solved together.

Choosing C by cross-validation asks for (folds x Cs) fits that share one matrix of features and
differ in two small things: which rows count, and C. Each fit is a column here, and all columns
go through the same matrix products. Column k minimises scikit-learn's objective

    f_k(w, b) = C_k sum_i m_ik [softplus(t_ik) - y_i t_ik] + |w|^2 / 2,     t_ik = <w, z_i> + b

with the intercept free. Two facts make it fast and sure:

- Rotating the features leaves |w| alone, so weights are sought along the principal axes, where
  the Hessian is near the diagonal 1 + C v curvature, v the mean of p (1 - p): a preconditioner
  that costs one number a column and takes the place of some hundred steps.
- f_k is 1-strongly convex in w, so |w - w*| <= |grad f_k|. Hence |grad f_k| max_i |z_i| bounds
  the error of every logit, and L-BFGS stops on what the reader of a probability cares about.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float64, Int64, Shaped
from torch import Tensor
from torch.nn.functional import logsigmoid

LOGIT_TOLERANCE = 1e-6
"""Largest error of a logit that the stopping rule allows."""
MAX_STEPS = 2000
MEMORY = 10
"""Pairs of step and change of gradient that L-BFGS remembers."""
HELD, AT_ONCE = 2**26, 32
"""Bytes of iterates and history to hold at a time, and the columns that go together even so:
where features are streamed, every group of columns reads them anew."""
TABLE = 2**16
"""Numbers in a table of rows and columns: a few such tables stay in a core's cache."""
KEPT = 0.8
"""Share of live columns at which the others are left behind."""


@dataclass(frozen=True)
class Design:
    """The features of the training rows, in memory or streamed."""

    blocks: Callable[[], Iterable[tuple[slice, Float64[Tensor, "row feature"]]]]
    """Yields each training row once: where the block lies among them, and its features.

    Views of what is held in memory; read anew at every pass when it is not."""
    curvature: Float64[Tensor, "axis"]
    """sum_i <z_i, axis>^2 over the training rows."""
    radius: float
    """max_i |z_i|."""
    axes: Float64[Tensor, "feature axis"] | None = None
    """Principal axes of the features (orthonormal); None where the features lie along them."""

    def weight(
        self, along_axes: Float64[Tensor, "axis column"]
    ) -> Float64[Tensor, "feature column"]:
        """Weights along the axes as weights on the features."""
        return along_axes if self.axes is None else self.axes @ along_axes


class Fits(NamedTuple):
    """One logistic regression a column."""

    weight: Float64[Tensor, "feature column"]
    bias: Float64[Tensor, "column"]


def solve(
    design: Design,
    labels: Int64[Tensor, "row"] | Bool[Tensor, "row column"],
    counts: Shaped[Tensor, "row column"],
    C: Float64[Tensor, "column"],
    *,
    tolerance: float = LOGIT_TOLERANCE,
) -> Fits:
    """Minimise every f_k.

    Columns of like C need like numbers of steps: they go together, so many at a time that their
    iterates and history stay within `HELD` bytes, and at least `AT_ONCE`. Each is solved as if it
    were alone.

    Args:
        design: Features of the rows.
        labels: 0 or 1; or a vector of its own for each column.
        counts: m_ik, how often row i counts in fit k: a fold's mask. Of any dtype: it may hold
            more numbers a row than the features do, and for a mask a byte each will do.
        C: Inverse strength of the penalty, as in scikit-learn.
        tolerance: Largest error of a logit that the stopping rule allows; a probability's is at
            most a quarter of it.

    Raises:
        ValueError: A column whose rows are all of one class: its intercept has no optimum.
    """
    y = labels[None] if labels.ndim == 1 else labels.T
    n = len(design.curvature) + 1
    theta, errors = C.new_empty(len(C), n), torch.empty_like(C)
    order = C.argsort(stable=True)
    for part in _parts(len(C), max(HELD // (8 * n * (2 * MEMORY + 6)), AT_ONCE)):
        fits = order[part]
        one = y if len(y) == 1 else y[fits].contiguous()
        problem = _Problem(design, one, counts[:, fits].T.contiguous(), C[fits])
        if not all(bool(((problem.counts > 0) & (one == i)).any(1).all()) for i in (0, 1)):
            raise ValueError("each fit needs rows of both classes, or its intercept has no optimum")
        theta[fits], errors[fits] = _minimised(problem, tolerance)
    if unfinished := int((errors > tolerance).sum()):
        warnings.warn(
            f"{unfinished} of {len(C)} logistic fits stopped after {MAX_STEPS} steps, their logits "
            f"known to within {float(errors.max()):.1g} only: leave out the largest C",
            RuntimeWarning,
            stacklevel=2,
        )
    return Fits(design.weight(theta[:, :-1].T), theta[:, -1])


def _parts(n: int, step: int) -> Iterator[slice]:
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))


class _Problem(NamedTuple):
    """Fits that go through the same matrix products.

    Inside, a fit is a row: products of few fits with many features are twice as fast so.
    """

    design: Design
    labels: Shaped[Tensor, "fit row"]
    """A single one where the fits share it."""
    counts: Shaped[Tensor, "fit row"]
    C: Float64[Tensor, "fit"]

    def of(self, fits: Tensor) -> "_Problem":
        labels = self.labels if len(self.labels) == 1 else self.labels[fits]
        return _Problem(self.design, labels, self.counts[fits], self.C[fits])


class _Evaluation(NamedTuple):
    """f_k at a point of its parameters (weights along the axes, then the intercept)."""

    point: Float64[Tensor, "fit parameter"]
    value: Float64[Tensor, "fit"]
    gradient: Float64[Tensor, "fit parameter"]
    information: Float64[Tensor, "fit"]
    """sum_i m_ik p_ik (1 - p_ik)."""

    def of(self, fits: Tensor) -> "_Evaluation":
        return _Evaluation(*(each[fits] for each in self))


def _minimised(
    problem: _Problem, tolerance: float
) -> tuple[Float64[Tensor, "fit parameter"], Float64[Tensor, "fit"]]:
    """The minimising parameters, and how far each fit's logits may be off."""
    design, radius = problem.design, max(problem.design.radius, 1.0)
    theta = problem.C.new_zeros(len(problem.C), len(design.curvature) + 1)
    errors = torch.full_like(problem.C, torch.inf)
    live = torch.arange(len(errors), device=errors.device)
    at, history = _evaluate(problem, theta.clone()), _History()
    for steps in range(MAX_STEPS + 1):
        error = at.gradient.norm(dim=1) * radius
        open_ = error > tolerance
        theta[live], errors[live] = at.point, error
        # To leave what has converged behind, all else is copied: not for every single fit.
        if int(open_.sum()) <= KEPT * len(live):
            live, at, history = live[open_], at.of(open_), history.of(open_)
            problem, open_ = problem.of(open_), open_[open_]
        if not len(live) or steps == MAX_STEPS:
            break
        information = at.information[:, None]
        curvature = design.curvature * information / problem.counts.shape[1]
        # The information is 0 where every p has saturated.
        hessian = torch.cat([curvature, information.clamp_min(1e-9)], 1) * problem.C[:, None]
        hessian[:, :-1] += 1
        move = history.solve(hessian, at.gradient) * -open_.to(at.value.dtype)[:, None]
        new = _line_search(problem, at, move)
        history.append(new.point - at.point, new.gradient - at.gradient)
        at = new
    return theta, errors


def _evaluate(problem: _Problem, theta: Float64[Tensor, "fit parameter"]) -> _Evaluation:
    """One pass over the rows."""
    design, labels, counts, C = problem
    W, b = design.weight(theta[:, :-1].T).T, theta[:, -1]
    loss, slope, information = torch.zeros_like(b), torch.zeros_like(b), torch.zeros_like(b)
    gradient = torch.zeros_like(W)
    for block, whole in design.blocks():
        for part in _parts(len(whole), max(TABLE // len(C), 1)):
            Z, rows = whole[part], slice(block.start + part.start, block.start + part.stop)
            # The class's sign goes first: 1 - p would lose what a well-fitted row has left to say.
            sign, m = 1 - 2 * labels[:, rows].to(Z.dtype), counts[:, rows].to(Z.dtype)
            wrong = torch.addmm(b[:, None], W, Z.T).mul_(sign)
            p = torch.sigmoid(wrong)
            loss -= logsigmoid(wrong.neg_()).mul_(m).sum(1)
            mp = m * p
            information += mp.sum(1) - p.mul_(mp).sum(1)
            residual = mp.mul_(sign)
            gradient.addmm_(residual, Z)
            slope += residual.sum(1)
    if design.axes is not None:
        gradient = gradient @ design.axes
    weight = theta[:, :-1]
    return _Evaluation(
        theta,
        C * loss + weight.square().sum(1) / 2,
        torch.cat([C[:, None] * gradient + weight, (C * slope)[:, None]], 1),
        information,
    )


def _line_search(problem: _Problem, at: _Evaluation, move: Tensor) -> _Evaluation:
    """Halve each fit's step until f has truly fallen; nearly all take the whole first step."""
    slope = (move * at.gradient).sum(1)
    noise = 1e-12 * at.value.abs()  # near the optimum f stands still before the gradient does
    step = torch.ones_like(slope)
    new = _evaluate(problem, at.point + move)
    for _ in range(40):
        short = (new.value > at.value + 1e-4 * step * slope + noise).nonzero()[:, 0]
        if not len(short):
            break
        step[short] /= 2
        again = _evaluate(problem.of(short), at.point[short] + step[short, None] * move[short])
        for old, part in zip(new, again, strict=True):
            old[short] = part
    return new


class _History:
    """Each fit's last steps s and changes of gradient y: what L-BFGS knows of the Hessian."""

    def __init__(self, pairs: list[tuple[Tensor, Tensor, Tensor]] | None = None) -> None:
        self.pairs = pairs or []

    def append(self, s: Tensor, y: Tensor) -> None:
        # A fit in rounding noise may show no curvature: 0 leaves the pair out.
        sy = (s * y).sum(1)
        self.pairs.append((s, y, torch.where(sy > 0, 1 / sy, 0.0)))
        del self.pairs[:-MEMORY]

    def of(self, fits: Tensor) -> "_History":
        return _History([(s[fits], y[fits], rho[fits]) for s, y, rho in self.pairs])

    def solve(self, hessian: Tensor, gradient: Tensor) -> Tensor:
        """Inverse Hessian times gradient, from a diagonal guess (Nocedal & Wright, alg. 7.4)."""
        q, shares, product = gradient.clone(), [], torch.empty_like(gradient)
        for s, y, rho in reversed(self.pairs):
            shares.append(rho * torch.mul(s, q, out=product).sum(1))
            q.addcmul_(y, shares[-1][:, None], value=-1)
        q /= hessian
        if self.pairs:
            _, y, rho = self.pairs[-1]
            scale = torch.where(rho > 0, 1 / (rho * (y.square() / hessian).sum(1)), 1.0)
            q *= scale[:, None]
        for (s, y, rho), share in zip(self.pairs, reversed(shares), strict=True):
            share = share - rho * torch.mul(y, q, out=product).sum(1)
            q.addcmul_(s, share[:, None])
        return q
