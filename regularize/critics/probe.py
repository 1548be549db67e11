"""The activation critic: a frozen probe on the reference's last input token (arXiv 2602.17546)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from probes.errors import InputError
from regularize.critics import Critic, Risks

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float64

    from probes.models import ChatModel
    from regularize.data import Example


class Reading(NamedTuple):
    """What a frozen probe reads of some examples."""

    logits: Float64[np.ndarray, "example"]
    """Log-odds of harm."""
    threshold: float | None
    """The one that it was frozen with (log-odds)."""


@dataclass(frozen=True)
class ProbeCritic(Critic):
    """Risk = the frozen probe's probability that the request is harmful."""

    path: str | None = None
    """Folder or hub repository of a frozen probe, such as runs/layer_sweep/MODEL/SET/probe.
    Default: the one that the last sweep of the model left in runs/layer_sweep."""
    threshold: float | None = None
    """Probability above which an example is flagged. Default: the probe's own frozen threshold."""
    allow_mismatch: bool = False
    """Go on although the probe was fitted on other weights or another chat template."""
    token_budget: int = 4096
    """Padded tokens in one forward pass."""

    def assess(self, examples: Sequence[Example], chat: ChatModel) -> Risks:
        """The answer is not read: the request alone tells."""
        from scipy.special import expit

        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise InputError(f"--critic.threshold {self.threshold}: a probability is from 0 to 1")
        logits, threshold = self.read(examples, chat)
        s = expit(logits)
        if self.threshold is not None:
            return Risks(s, s > self.threshold)
        return Risks(s, None if threshold is None else logits > threshold)

    def read(self, examples: Sequence[Example], chat: ChatModel) -> Reading:
        """The log-odds themselves.

        Raises:
            InputError: There is no probe, or it does not hold for this model.
        """
        import numpy as np

        from probes.frozen import FrozenProbe

        if self.path is None:
            raise InputError(
                "the probe critic needs a frozen probe: make one with `python -m "
                f"probes.layer_sweep --models {chat.name} --train SET` and give its folder, as "
                "the sweep prints it, with critic:probe --critic.path FOLDER"
            )
        probe = FrozenProbe.from_pretrained(self.path)
        logits = probe.logits(
            chat.model,
            chat.tokenizer,
            [example.prompt for example in examples],
            token_budget=self.token_budget,
            allow_mismatch=self.allow_mismatch,
        )
        return Reading(logits.cpu().numpy().astype(np.float64), probe.config.threshold)


def probe_of(critic: Critic) -> ProbeCritic | None:
    """The probe that a critic is, or holds in its field `probe`; None where there is none."""
    held = getattr(critic, "probe", critic)
    return held if isinstance(held, ProbeCritic) else None
