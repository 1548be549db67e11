"""LoX: before training, what alignment has changed is exaggerated along its main directions.

Perin et al. 2025, arXiv 2506.15606 ("LoX: Low-Rank Extrapolation Robustifies LLM Safety Against
Fine-tuning"): with dW = W_aligned - W_base = U S V^T of each weight matrix,

    W <- W_aligned + a U_k U_k^T dW = W_aligned + a U_k S_k V_k^T

and plain fine-tuning from there. k = 6 and a = 1.25 are the paper's for Llama-2-7B, its best
aligned model; for its others k = 3. k should be the least rank at which W_base + U_k S_k V_k^T
refuses as the aligned model does. k = 0, all of dW, is ExPO (arXiv 2404.16792). Where alignment has
changed much, as in miniature/llama, a = 1.25 breaks the model before any training.

As in the released code, embeddings and head are changed too; where they are tied, once. There k and
a default to 0 and 1, here to the paper's. Whoever looks at a reference policy (anchors,
--measure-kl) gets the model after this change; anchors are answered by the model before it.

It costs one decomposition a matrix before training, and nothing in it. The result is a whole model,
not an adapter. In bfloat16 what is added is rounded to the weights' own steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from probes.errors import InputError
from regularize.defences import Defence, Given

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

SMALL = 512
"""Up to so many rows or columns a matrix is decomposed exactly; beyond, by random projections."""
OVERSAMPLING, ITERATIONS = 32, 12
"""Of the latter: alignment's singular values fall slowly."""


@dataclass(frozen=True)
class LoX(Defence):
    """W <- W_aligned + a U_k S_k V_k^T of W_aligned - W_base, then L = NLL."""

    k: int = 6
    """Singular directions that are extrapolated; 0: all of them (ExPO)."""
    a: float = 1.25
    """How far: a share of what alignment has changed along them."""
    embeddings: bool = True
    """Whether embeddings and head are changed as well, as in the released code."""

    needs_risk = False
    needs = ("base",)
    changes_start = True

    def check(self) -> None:
        """Raise InputError for options that mean nothing."""
        if self.k < 0:
            raise InputError(f"--defence.k {self.k}: must not be negative")
        if not (self.a >= 0 and math.isfinite(self.a)):
            raise InputError(f"--defence.a {self.a}: must be a number that is not negative")

    def before(self, given: Given) -> Self:
        """Extrapolate, in place.

        Raises:
            InputError: The base model is another one; names the weight that does not match.
        """
        import torch

        from regularize.alignment import pairs

        model = given.chat.model
        assert given.base is not None
        found = pairs(model, given.base)
        ends = [model.get_input_embeddings(), model.get_output_embeddings()]
        spared = set() if self.embeddings else {id(one.weight) for one in ends if one is not None}
        with torch.no_grad():
            for pair in found.values() if self.a else ():
                if id(pair.aligned) not in spared:
                    part = of_rank(pair.difference(), self.k)
                    pair.aligned.copy_(pair.aligned.to(part.dtype) + self.a * part)
        return self


def of_rank(
    change: Float[Tensor, "*expert row column"], k: int
) -> Float[Tensor, "*expert row column"]:
    """U_k S_k V_k^T of a matrix, or of each of a stack; all of it for k = 0."""
    import torch

    least = min(change.shape[-2:])
    if not 0 < k < least:
        return change
    if least <= SMALL:
        u, s, vh = torch.linalg.svd(change, full_matrices=False)
    else:
        # Always the same projections: the change follows from the two models alone.
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(0)
            rank = min(k + OVERSAMPLING, least)
            u, s, v = torch.svd_lowrank(change, q=rank, niter=ITERATIONS)
        vh = v.mT
    return (u[..., :k] * s[..., None, :k]) @ vh[..., :k, :]
