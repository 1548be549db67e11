"""How alike the directions are that probes of several positions have found.

All positions of a layer write to the same residual stream, so that one linear map can be applied at
each: the question is whether it is the same one. The cosine is therefore that of the weights on raw
activations, w = w_z / sd, not of those on standardised ones, w_z, which are in the units of each
position's own spread: two positions that need the very same map would have unlike w_z. A position
whose activations are all larger by one factor has a smaller w in the same direction; a bias plays
no part. What is compared is what was fitted: where features hardly vary or go together, many
directions separate nearly as well, and two that differ may yet rank alike. Random directions have
a cosine of about 0 +- 1 / sqrt(d_model).
"""

from collections.abc import Mapping
from itertools import combinations

import torch
from jaxtyping import Float
from torch import Tensor

from analysis.evidence_rows import CosineRow
from probes.hooks import Position


def cosines(
    weights: Float[Tensor, "layer d_model"], others: Float[Tensor, "layer d_model"]
) -> Float[Tensor, "layer"]:
    """cos = <w, v> / (|w| |v|), layer by layer (float64, -1 to 1); NaN where either is zero."""
    w, v = weights.double(), others.double()
    lengths = w.norm(dim=1) * v.norm(dim=1)
    cosine = ((w * v).sum(1) / lengths).clamp(-1, 1)
    return torch.where(lengths > 0, cosine, torch.nan)


def cosine_rows(
    weights: Mapping[Position, Float[Tensor, "layer d_model"]],
    *,
    model: str,
    hook_point: str,
    train_set: str,
) -> list[CosineRow]:
    """A row a layer and pair of positions.

    Args:
        weights: Of each position the probes' weights on raw activations, one probe a layer.
        model: Goes into every row.
        hook_point: Goes into every row.
        train_set: What all of them were fitted on.
    """
    return [
        CosineRow(model, hook_point, train_set, layer, position, other, cosine)
        for position, other in combinations(weights, 2)
        for layer, cosine in enumerate(cosines(weights[position], weights[other]).tolist())
    ]
