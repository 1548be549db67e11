"""Directions of the residual stream to change: the probe's, the class means', and random ones.

A logistic probe's weights say what to read, not what to move: among directions that tell the
classes apart they shun those in which activations vary anyway. Where activations are anisotropic
they are therefore not the difference of the class means, along which the classes lie, and which
Arditi et al. 2024 (arXiv 2406.11717) remove and add. So both can be tried.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from probes.edits import unit
from probes.errors import InputError

Target = Literal["probe", "class-mean"]
Random = Literal["covariance", "isotropic"]


@dataclass(frozen=True)
class Directions:
    """Of one layer, from the activations of the train set there."""

    layer: int
    probe: Float[Tensor, "d_model"]
    """The probe's weights, as long as they are."""
    class_mean: Float[Tensor, "d_model"]
    """Mean of the harmful prompts less that of the harmless ones."""
    random: Float[Tensor, "draw d_model"]
    """Unit vectors."""
    logit_sd: float
    """Standard deviation of the probe's logit over the train set."""

    @classmethod
    def of(
        cls,
        layer: int,
        activations: Float[Tensor, "prompt d_model"],
        labels: Int64[Tensor, "prompt"],
        probe: Float[Tensor, "d_model"],
        *,
        draws: int,
        random: Random,
        seed: int,
    ) -> "Directions":
        """Measure what is needed of the activations.

        Args:
            layer: Where they were read.
            activations: Of the train set, at the token that the probe reads.
            labels: 1 = harmful.
            probe: Its weights at this layer.
            draws: Random directions.
            random: `covariance` draws N(0, S) with S the covariance of activations within the
                classes, so that directions in which prompts differ much come up often; `isotropic`
                draws N(0, 1). The former are harder to beat: a model reacts little to a direction
                in which nothing ever varies.
            seed: Of the draws.

        Raises:
            InputError: The probe or the class means are the same for all prompts.
        """
        acts = activations.double()
        means = torch.stack([acts[labels == label].mean(0) for label in (0, 1)])
        generator = torch.Generator().manual_seed(seed)
        size = len(acts) if random == "covariance" else acts.shape[1]
        drawn = torch.randn(draws, size, generator=generator, dtype=torch.float64)
        if random == "covariance":  # sums of centred rows with normal weights have covariance S
            drawn = drawn @ (acts - means[labels])
        logit_sd = float((acts @ probe.double()).std())
        if not logit_sd > 0:
            raise InputError(
                f"layer {layer}: the probe's logit is the same for every prompt of the train set; "
                "choose a layer that tells the classes apart"
            )
        return cls(
            layer=layer,
            probe=probe.float(),
            class_mean=(means[1] - means[0]).float(),
            random=torch.stack([unit(one) for one in drawn]),
            logit_sd=logit_sd,
        )

    def towards(self, target: Target) -> Float[Tensor, "d_model"]:
        """The unit vector of a target."""
        return unit(self.probe if target == "probe" else self.class_mean)

    def cosine(self, direction: Float[Tensor, "d_model"]) -> float:
        """Of the angle between a unit vector and the probe's direction."""
        return float(direction.double() @ unit(self.probe).double())

    def norm(self, target: Target, strength: float) -> float:
        """How far to go along a target so that the probe's logit rises by `strength` SDs.

        With w the probe's weights and u the target's unit vector, n = strength SD(w.a) / (w.u). For
        the probe itself that is `strength` standard deviations of the activations along it; for the
        class means, which rise the same logit, it is longer.

        Raises:
            InputError: Going along the target does not raise the logit.
        """
        rise = float(self.probe.double() @ self.towards(target).double())
        if rise <= 0:
            raise InputError(
                f"layer {self.layer}: the {target} direction does not raise the probe's logit, so "
                "that no length along it is comparable; choose another layer, or --direction probe"
            )
        return strength * self.logit_sd / rise
