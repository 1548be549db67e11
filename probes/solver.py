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
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float64, Int64, Shaped
from torch import Tensor
from torch.nn.functional import logsigmoid

LOGIT_TOLERANCE = 1e-6
"""Largest error of a logit that the stopping rule allows."""
MAX_STEPS = 2000
MEMORY = 10
"""Pairs of step and change of gradient that L-BFGS remembers."""


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


class _Evaluation(NamedTuple):
    """f_k at a point of its parameters (weights along the axes, then the intercept)."""

    point: Float64[Tensor, "parameter column"]
    value: Float64[Tensor, "column"]
    gradient: Float64[Tensor, "parameter column"]
    information: Float64[Tensor, "column"]
    """sum_i m_ik p_ik (1 - p_ik)."""

    def columns(self, keep: Tensor) -> "_Evaluation":
        return _Evaluation(
            self.point[:, keep], self.value[keep], self.gradient[:, keep], self.information[keep]
        )


def solve(
    design: Design,
    labels: Int64[Tensor, "row"],
    counts: Shaped[Tensor, "row column"],
    C: Float64[Tensor, "column"],
) -> Fits:
    """Minimise every f_k; a column that has converged leaves the batch.

    Args:
        design: Features of the rows.
        labels: 0 or 1.
        counts: m_ik, how often row i counts in fit k: a fold's mask. Of any dtype: it may hold
            more numbers a row than the features do, and for a mask a byte each will do.
        C: Inverse strength of the penalty, as in scikit-learn.

    Raises:
        ValueError: A column whose rows are all of one class: its intercept has no optimum.
    """
    y = labels.double()
    if not all(bool((counts[labels == label] > 0).any(0).all()) for label in (0, 1)):
        raise ValueError("each fit needs rows of both classes, or its intercept has no optimum")
    theta = torch.zeros(len(design.curvature) + 1, len(C), dtype=torch.float64, device=C.device)
    live = torch.arange(len(C), device=C.device)
    at, history = _evaluate(design, y, counts, C, theta.clone()), _History()
    for _ in range(MAX_STEPS):
        error = at.gradient.norm(dim=0) * max(design.radius, 1.0)
        keep = error > LOGIT_TOLERANCE
        theta[:, live] = at.point
        live, at, history = live[keep], at.columns(keep), history.columns(keep)
        if not len(live):
            break
        curvature = design.curvature[:, None] * at.information / len(y)
        intercept = at.information.clamp_min(1e-9)[None]  # 0 where every p has saturated
        hessian = torch.cat([1 + C[live] * curvature, C[live] * intercept])
        new = _line_search(
            partial(_evaluate, design, y),
            counts[:, live],
            C[live],
            at,
            -history.solve(hessian, at.gradient),
        )
        history.append(new.point - at.point, new.gradient - at.gradient)
        at = new
    else:
        warnings.warn(
            f"{len(live)} of {len(C)} logistic fits stopped after {MAX_STEPS} steps, their logits "
            f"known to within {float(error.max()):.1g} only: leave out the largest C",
            RuntimeWarning,
            stacklevel=2,
        )
    return Fits(design.weight(theta[:-1]), theta[-1])


def _evaluate(design: Design, y: Tensor, counts: Tensor, C: Tensor, theta: Tensor) -> _Evaluation:
    """One pass over the rows."""
    W, b = design.weight(theta[:-1]), theta[-1]
    loss, slope, information = torch.zeros_like(b), torch.zeros_like(b), torch.zeros_like(b)
    gradient = torch.zeros_like(W)
    for rows, Z in design.blocks():
        # The class's sign goes first: 1 - p would lose what a well-fitted row has left to say.
        sign, m = 1 - 2 * y[rows, None], counts[rows].to(Z.dtype)
        wrong = sign * torch.addmm(b, Z, W)
        p = torch.sigmoid(wrong)
        residual = m * sign * p
        loss -= (m * logsigmoid(-wrong)).sum(0)
        gradient += Z.T @ residual
        slope += residual.sum(0)
        information += (m * p * (1 - p)).sum(0)
    if design.axes is not None:
        gradient = design.axes.T @ gradient
    return _Evaluation(
        theta,
        C * loss + theta[:-1].square().sum(0) / 2,
        torch.cat([C * gradient + theta[:-1], (C * slope)[None]]),
        information,
    )


def _line_search(
    evaluate: Callable[[Tensor, Tensor, Tensor], _Evaluation],
    counts: Tensor,
    C: Tensor,
    at: _Evaluation,
    move: Tensor,
) -> _Evaluation:
    """Halve each column's step until f has truly fallen; nearly all take the whole first step."""
    slope = (move * at.gradient).sum(0)
    noise = 1e-12 * at.value.abs()  # near the optimum f stands still before the gradient does
    step = torch.ones_like(slope)
    new = evaluate(counts, C, at.point + move)
    for _ in range(40):
        short = (new.value > at.value + 1e-4 * step * slope + noise).nonzero()[:, 0]
        if not len(short):
            break
        step[short] /= 2
        again = evaluate(
            counts[:, short], C[short], at.point[:, short] + step[short] * move[:, short]
        )
        for old, part in zip(new, again, strict=True):
            old[..., short] = part
    return new


class _History:
    """Each column's last steps s and changes of gradient y: what L-BFGS knows of the Hessian."""

    def __init__(self, pairs: list[tuple[Tensor, Tensor, Tensor]] | None = None) -> None:
        self.pairs = pairs or []

    def append(self, s: Tensor, y: Tensor) -> None:
        # A column in rounding noise may show no curvature: 0 leaves the pair out.
        sy = (s * y).sum(0)
        self.pairs.append((s, y, torch.where(sy > 0, 1 / sy, 0.0)))
        del self.pairs[:-MEMORY]

    def columns(self, keep: Tensor) -> "_History":
        return _History([(s[:, keep], y[:, keep], rho[keep]) for s, y, rho in self.pairs])

    def solve(self, hessian: Tensor, gradient: Tensor) -> Tensor:
        """Inverse Hessian times gradient, from a diagonal guess (Nocedal & Wright, alg. 7.4)."""
        q, shares = gradient.clone(), []
        for s, y, rho in reversed(self.pairs):
            shares.append(rho * (s * q).sum(0))
            q -= shares[-1] * y
        q /= hessian
        if self.pairs:
            _, y, rho = self.pairs[-1]
            q *= torch.where(rho > 0, 1 / (rho * (y.square() / hessian).sum(0)), 1.0)
        for (s, y, rho), share in zip(self.pairs, reversed(shares), strict=True):
            q += (share - rho * (y * q).sum(0)) * s
        return q
