"""What a comparison compares: arms, each a defence and a critic, and the runs that they make."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from regularize.defences import Defence
from regularize.defences.adaptive_kl import AdaptiveKL
from regularize.defences.antidote import Antidote
from regularize.defences.constant_kl import ConstantKL
from regularize.defences.constrained_sft import ConstrainedSFT
from regularize.defences.filter import Filter
from regularize.defences.none import SFT
from regularize.defences.reweight import Reweight


class Anchors(NamedTuple):
    """Prompts that the reference has answered, which join the training."""

    n: int | None = None
    """How many; None for as many as are usual in the testbed."""
    kind: str = ""
    """Only prompts of this kind; "" for all kinds."""
    replay: bool = False
    """Whether they join as ordinary rows, not at beta = 1: the control of the anchors."""


class Arm(NamedTuple):
    """A defence and a critic under the names that tables give them."""

    defence: str
    critic: str
    method: Defence
    anchors: Anchors | None = None

    @property
    def name(self) -> str:
        """As on the command line."""
        return f"{self.defence}/{self.critic}"

    def by(self, critic: str) -> Arm:
        """The same defence with another critic."""
        return self._replace(critic=critic)


@dataclass(frozen=True)
class Run:
    """One fine-tuning and its evaluation."""

    model: str
    attack: str
    """As `EvaluationRow` has it."""
    share: float
    """Of harmful rows."""
    learning_rate: float
    seed: int
    arm: Arm

    @property
    def name(self) -> str:
        """Its folder."""
        from probes.manifest import slug

        words = (
            self.model,
            self.attack,
            f"{self.share:g}",
            f"{self.learning_rate:g}",
            *self.arm.name.split("/"),
            f"seed{self.seed}",
        )
        return slug("-".join(words))

    @property
    def data(self) -> str:
        """Name of its training data in the testbed: the attack, and its share unless that is 1."""
        return self.attack if self.share == 1 else f"{self.attack}:{self.share}"


ANCHORED = AdaptiveKL(beta_min=0.02, beta_max=1.0, shape="sharpened")

NONE = Arm("none", "none", SFT())
PAPER = Arm("adaptive-kl", "probe", AdaptiveKL())
BATCH = Arm("adaptive-kl-batch", "probe", AdaptiveKL(granularity="batch"))
HELD = Arm("anchored", "probe", ANCHORED)
WITH_ANCHORS = Arm("anchored+anchors", "probe", ANCHORED, Anchors())
CONSTANT = tuple(Arm(f"constant-kl-{beta}", "none", ConstantKL(beta)) for beta in (0.5, 0.9))
CONSTRAINED = Arm("constrained-sft", "none", ConstrainedSFT())
RANDOM_MASK = Arm("antidote-random", "none", Antidote(mask="random"))
FILTER = Arm("filter", "probe", Filter())
CONTROLS = (Arm("reweight", "probe", Reweight()), FILTER)
WITH_ROWS = (
    Arm("adaptive-kl+anchors", "probe", AdaptiveKL(), Anchors()),
    Arm("none+replay", "none", SFT(), Anchors(replay=True)),
    Arm("filter+replay", "probe", Filter(), Anchors(replay=True)),
)
"""What the rows that anchors are do without the anchoring."""

MAIN = (NONE, PAPER, HELD)
FEW_ARMS = (NONE, PAPER, WITH_ANCHORS)


def beta_arms(
    least: Sequence[float], most: Sequence[float], budgets: Sequence[float]
) -> Iterator[Arm]:
    """Adaptive KL at all pairs of betas, and with betas that follow from budgets.

    In both shapes: `adaptive-kl-LEAST-MOST` and `adaptive-kl-auto-BUDGET`, which starts from the
    paper's betas, have the risk as a probability, `anchored-...` sharpened. Two of them have the
    names that they have everywhere.

    Args:
        least: Values of beta_min.
        most: Values of beta_max.
        budgets: Mean KL on safe prompts, nats per answer token.
    """
    for own in (PAPER, HELD):
        assert isinstance(own.method, AdaptiveKL)
        for low in least:
            for high in most:
                method = replace(own.method, beta_min=low, beta_max=high)
                same = method == own.method
                yield own if same else Arm(f"{own.defence}-{low:g}-{high:g}", own.critic, method)
        for budget in budgets:
            moved = replace(own.method, kl_budget=budget)
            yield Arm(f"{own.defence}-auto-{budget:g}", own.critic, moved)


def others(settings: Mapping[str, Mapping[str, object]], *arms: Arm) -> tuple[Arm, ...]:
    """An arm for each defence that none of these has, so that a new file is compared at once.

    Args:
        settings: Hyper-parameters by the defence's name, where they are not its defaults.
        arms: What there is already.
    """
    from regularize import defences, plugins

    known = {type(arm.method) for arm in arms}
    return tuple(
        Arm(name, "probe" if kind.needs_risk else "none", kind(**settings.get(name, {})))
        for name, kind in plugins.found(defences, Defence).items()
        if kind not in known
    )
