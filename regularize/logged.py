"""What training logs of its batches: sums in each process, then means over all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

MEANS = {"nll": "tokens", "kl": "tokens", "risk": "examples", "beta": "examples"}
"""What is logged, and what it is a mean over."""
LOGGED = ("loss", *MEANS, "grad_norm")


class Sums:
    """Since the last log."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def __bool__(self) -> bool:
        """Whether anything was added."""
        return bool(self._sums)

    def add(
        self,
        *,
        risk: Float[Tensor, "example"],
        beta: Float[Tensor, "example"],
        nll: Float[Tensor, "token"],
        kl: Float[Tensor, "token"],
    ) -> None:
        """A batch's."""
        found = {
            "risk": risk.sum(),
            "beta": beta.sum(),
            "examples": torch.tensor(float(len(beta)), device=beta.device),
            "tokens": torch.tensor(float(len(nll)), device=beta.device),
            "nll": nll.sum(),
            "kl": kl.sum(),
        }
        for name, value in found.items():
            self._sums[name] = self._sums.get(name, 0.0) + value.detach().float()

    def means(self, summed: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """NLL and KL (nats per answer token), mean risk and beta; and begin anew.

        Args:
            summed: Sums a tensor over all processes.
        """
        totals = summed(torch.stack(list(self._sums.values()))).tolist()
        found = dict(zip(self._sums, totals, strict=True))
        self._sums = {}
        return {name: found[name] / max(found[over], 1.0) for name, over in MEANS.items()}


def of_steps(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of transformers' log: `step` and `LOGGED` of each; NaN for what was not looked at."""
    return [
        {"step": entry["step"], **{name: float(entry.get(name, "nan")) for name in LOGGED}}
        for entry in history
        if "nll" in entry
    ]
