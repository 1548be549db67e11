"""beta by a budget: how far the policy may drift on safe prompts is given, and beta sees to it.

Every so many optimizer steps the drift D is measured, the mean of KL(pi_ref || pi_theta) over the
answer tokens of some safe prompts (nats), which the reference has answered and nothing is trained
on; and beta_max moves against it, here by its odds lambda = beta_max / (1 - beta_max):

    e = clip(D / D* - 1, -.2, .2),      log lambda <- log lambda + rate e

The loss of an example of risk 1 is, but for a factor, NLL + lambda KL: lambda is the multiplier of
the constraint KL <= D*, and to raise it where that is broken is dual ascent, on log lambda, which
keeps it positive. For a small rate it is the rule that holds a policy's KL to a target in learning
from preferences, lambda <- lambda (1 + rate e) with that very e (Ziegler et al. 2019, arXiv
1909.08593, section 2.2). Theirs has rate .1 for many thousands of updates; a fine-tuning has tens.

beta_max stays within [beta_min, 1]: from `MOST` on it counts as 1, and comes down from there again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from accelerate.utils import broadcast  # type: ignore[import-untyped]
from torch import Tensor, nn

from analysis.beta_rows import BetaRow
from probes.blocks import evaluating
from probes.capture import pad_id
from probes.errors import InputError
from probes.models import ChatModel
from regularize.data import Encoded, Example, encode
from regularize.defences import Defence, Direction, Given, Steps
from regularize.losses import Head, Hidden, regularized
from regularize.model import adapter_off, base_of, head_of
from regularize.passes import answer_states

if TYPE_CHECKING:
    from regularize.defences.adaptive_kl import AdaptiveKL
    from regularize.measures import Arm

CLIP = 0.2
"""Largest relative error that one look counts, as in the paper."""
LEAST, MOST = 0.001, 0.999
"""beta beyond these counts as 0 and 1: its odds have no end."""
NEW_TOKENS = 64
"""Longest answer of the reference to a safe prompt."""
TOKENS = 4096
"""Padded tokens in one forward pass of a look."""
DRIFT = "kl_drift"
"""Key of what was measured in the trainer's log."""


class Betas(NamedTuple):
    """Both ends of beta."""

    least: float
    most: float


def error(drift: float, budget: float) -> float:
    """e = clip(D / D* - 1): how far the drift is above its budget, as a share of it.

    Of a budget of zero any drift is infinitely above, and none is just it.
    """
    if budget == 0:
        return CLIP if drift > 0 else 0.0
    return max(-CLIP, min(CLIP, drift / budget - 1))


def log_odds(beta: float) -> float:
    """log(beta / (1 - beta)), between those of `LEAST` and `MOST`."""
    held = max(LEAST, min(MOST, beta))
    return math.log(held / (1 - held))


def moved(at: float, drift: float, budget: float, *, rate: float, floor: float) -> float:
    """log lambda after a look, within [floor, that of `MOST`]."""
    return max(floor, min(log_odds(MOST), at + rate * error(drift, budget)))


def betas(at: float, start: Betas, *, both: bool) -> Betas:
    """Both ends at a log lambda.

    Args:
        at: log lambda of beta_max.
        start: Both ends as they were given.
        both: Whether the odds of beta_min move by the same factor.
    """
    least = start.least
    if both:
        least = _beta(log_odds(start.least) + at - log_odds(start.most), floor=0.0)
    return Betas(least, _beta(at, floor=start.least))


def _beta(at: float, *, floor: float) -> float:
    if at >= log_odds(MOST):
        return 1.0
    return floor if at <= log_odds(floor) else 1 / (1 + math.exp(-at))


class Yardstick:
    """What the reference answers to prompts that nothing is trained on, and its states there."""

    def __init__(
        self, reference: nn.Module, chat: ChatModel, examples: Sequence[Example], *, n: int,
        seed: int = 0,
    ) -> None:  # fmt: skip
        """Ask the reference.

        Args:
            reference: As it is now, without the adapter that it may have.
            chat: Its tokenizer.
            examples: Whose prompts; their answers are not read.
            n: At most so many of them, drawn by the seed.
            seed: Draws them.

        Raises:
            InputError: It answers none of them.
        """
        from regularize.anchors import answered

        chosen = list(examples)
        if n < len(chosen):
            chosen = Random(f"drift/{seed}").sample(chosen, n)
        with adapter_off(reference), evaluating(reference), torch.no_grad():
            asked = replace(chat, model=base_of(reference))
            made = answered(asked, [one.prompt for one in chosen], max_new_tokens=NEW_TOKENS)
            if not made:
                raise InputError(
                    f"the reference answers none of the {len(chosen)} safe prompts, on which the "
                    "drift would be measured: give others with --safe"
                )
            self.rows: list[Encoded] = [encode(one, chat.tokenizer) for one in made]
            self._pad = pad_id(chat.tokenizer)
            self._hidden = [part.hidden.clone() for part in self._parts(reference)]
            own = [None if t is None else t.detach() for t in head_of(reference)]
            if any(t is not None and t.requires_grad for t in head_of(reference)):
                own = [None if t is None else t.clone() for t in own]  # it will be trained
            self._head = Head(*own)  # type: ignore[arg-type]

    @torch.no_grad()
    def kl(self, policy: nn.Module, direction: Direction = "forward") -> float:
        """Mean KL between reference and policy over all answer tokens, nats."""
        total, n = 0.0, 0
        with evaluating(policy):
            for part, known in zip(self._parts(policy), self._hidden, strict=True):
                beta = torch.ones(len(known), device=known.device)
                reference = Hidden(known, self._head)
                found = regularized(
                    part.hidden, head_of(policy), part.target, torch.zeros_like(beta), beta,
                    reference, direction=direction,
                )  # fmt: skip
                total += float(found.kl.cpu().double().sum())
                n += len(known)
        return max(total / n, 0.0)  # rounding may leave less than none

    def _parts(self, model: nn.Module) -> Any:
        return answer_states(base_of(model), self.rows, token_budget=TOKENS, pad=self._pad)


class Controlled(Steps):
    """Moves beta every so many steps, in all processes alike."""

    def __init__(self, defence: AdaptiveKL, policy: nn.Module, given: Given) -> None:
        assert defence.kl_budget is not None
        self._defence, self._policy = defence, policy
        self._start = Betas(defence.beta_min, defence.beta_max)
        self._at = _kept(log_odds(defence.beta_max))
        self._drift = math.nan
        self._yardstick = Yardstick(
            given.reference or policy, given.chat, given.safe, n=defence.kl_prompts,
            seed=given.seed,
        )  # fmt: skip

    def begin(self, step: int, steps: int) -> None:  # noqa: ARG002
        """Look, and move; not before the first step, where nothing has drifted yet."""
        if step == 0 or step % self._defence.kl_every:
            return
        found = self._yardstick.kl(self._policy, self._defence.direction)
        # Every process measures, and the first one's word is taken.
        said = broadcast(torch.tensor(found, device=next(self._policy.parameters()).device))
        self._drift = _kept(float(said))
        budget, floor = self._defence.kl_budget, log_odds(self._defence.beta_min)
        assert budget is not None
        self._at = _kept(
            moved(self._at, self._drift, budget, rate=self._defence.kl_rate, floor=floor)
        )

    def now(self, defence: Defence) -> Defence:
        """With beta as it has been moved."""
        if math.isnan(self._drift):
            return defence
        least, most = self._betas
        return replace(self._defence, beta_min=least, beta_max=most)

    def logged(self) -> dict[str, float]:
        """The last drift that was measured (none before the first), and both ends of beta."""
        least, most = self._betas if not math.isnan(self._drift) else self._start
        known = {} if math.isnan(self._drift) else {DRIFT: self._drift}
        return {**known, "kl_budget": float(self._defence.kl_budget or 0.0),
                "beta_min": least, "beta_max": most}  # fmt: skip

    def state(self) -> dict[str, Tensor]:
        """log lambda, and the last drift."""
        return {"log_odds": torch.tensor(self._at), "drift": torch.tensor(self._drift)}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from there.

        Raises:
            InputError: The checkpoint is of another defence.
        """
        if missing := {"log_odds", "drift"} - state.keys():
            raise InputError(
                f"the checkpoint has no {sorted(missing)[0]}: it is of another defence"
            )
        self._at, self._drift = float(state["log_odds"]), float(state["drift"])

    @property
    def _betas(self) -> Betas:
        return betas(self._at, self._start, both=self._defence.kl_moves == "both")


def rows(log: Sequence[dict[str, Any]], about: Arm) -> list[BetaRow]:
    """The rows of a run, one a logged step, from its trainer's log; none if beta is fixed."""
    return [
        BetaRow(
            **asdict(about),
            step=int(entry["step"]),
            drift=float(entry.get(DRIFT, math.nan)),
            budget=float(entry["kl_budget"]),
            beta_min=float(entry["beta_min"]),
            beta_max=float(entry["beta_max"]),
        )
        for entry in log
        if "kl_budget" in entry
    ]


def _kept(value: float) -> float:
    """As a checkpoint holds it, so that a resumed run goes on from the very same."""
    return float(np.float32(value))
