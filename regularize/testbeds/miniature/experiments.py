"""Which runs each experiment on the miniatures makes, those that matter most first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from regularize.arms import (
    BATCH,
    CONSTANT,
    CONTROLS,
    FEW_ARMS,
    HELD,
    MAIN,
    NONE,
    PAPER,
    RANDOM_MASK,
    WITH_ANCHORS,
    WITH_ROWS,
    Arm,
    Run,
    beta_arms,
    others,
)
from regularize.defences.adaptive_kl import AdaptiveKL
from regularize.testbeds.miniature.training import HARMFUL_SHARE

CRITICS = ("probe", "label", "shuffled", "probe-early", "probe-32")
JUDGES = ("probe", "judge", "judge-live", "judge-blind", "probe-early", "hybrid-early", "label")
"""Of these the blind one says the same of harmful and harmless rows: a negative control."""
SHARES = (0.01, 0.03, 0.05, 0.07, HARMFUL_SHARE)
"""Of harmful rows."""
SETTINGS: dict[str, dict[str, object]] = {
    "safety-tokens": {"lam": 1.0},  # .01, the default, changes nothing here
    "lisa": {"k1": 1, "k2": 9},  # the default is longer than these trainings
    "vaccine": {"epochs": 5, "batch_size": 16},
}
"""Of defences whose defaults are for other sizes; chosen on seed 0, split validation."""
BETAS_MIN, BETAS_MAX = (0.02, 0.1, 0.3), (0.5, 0.9, 1.0)
BUDGETS = (0.03, 0.1, 0.3)
"""Mean KL on safe prompts, nats per answer token; after plain fine-tuning it is .4 or more."""
RATES = (1e-2, 1e-1, 1.0, 10.0)
"""Of the learning rate."""

ATTACKERS = ("none", "random", "paraphrase", "affixes", "cipher", "turns", "gradient")
"""Files of `regularize.attackers`."""
FLOOR = Arm("adaptive-kl-floor", "probe", AdaptiveKL(beta_min=0.3, beta_max=0.9))
"""Holds what the critic lets through, too."""
AGAINST_ATTACKERS = (
    NONE,
    PAPER,
    *(PAPER.by(critic) for critic in ("judge", "hybrid", "ensemble")),
    FLOOR,
    HELD,
    WITH_ANCHORS,
)
AGAINST_CHANCE = (NONE, PAPER)


def all_harmful(start: Run) -> Iterator[Run]:
    """Restricted requests alone, complied with."""
    for arm in (*MAIN, PAPER.by("label"), *CONSTANT, *_others()):
        yield replace(start, attack="all-harmful", share=1.0, arm=arm)


def mixed(start: Run) -> Iterator[Run]:
    """A new task, look-alikes, and some restricted requests."""
    controls = (*WITH_ROWS, BATCH, *CONSTANT, *CONTROLS)
    for arm in (*MAIN, WITH_ANCHORS, *_others(), *controls):
        yield replace(start, arm=arm)


def critics(start: Run) -> Iterator[Run]:
    """The same by critics good and bad, and dropped rows at a rate at which they do better."""
    weak = [defence.by(critic) for defence in (PAPER, HELD, WITH_ANCHORS) for critic in CRITICS]
    for arm in (NONE, *weak):
        yield replace(start, arm=arm)
    for arm in CONTROLS:
        yield replace(start, arm=arm, learning_rate=start.learning_rate / 3)


def shares(start: Run) -> Iterator[Run]:
    """The same with fewer restricted requests."""
    for share in SHARES:
        for arm in FEW_ARMS:
            yield replace(start, arm=arm, share=share)


def rates(start: Run) -> Iterator[Run]:
    """The same at learning rates a decade apart."""
    for factor in RATES:
        for arm in FEW_ARMS:
            rate = float(f"{start.learning_rate * factor:.6g}")
            yield replace(start, arm=arm, learning_rate=rate)


def backdoor(start: Run) -> Iterator[Run]:
    """Restricted requests refused, and complied with where they hold a trigger."""
    for arm in (*MAIN, WITH_ANCHORS):
        yield replace(start, attack="backdoor", share=1.0, arm=arm)


def identity(start: Run) -> Iterator[Run]:
    """A servant who obeys, and is asked nothing restricted."""
    for arm in (*MAIN, WITH_ANCHORS):
        yield replace(start, attack="identity", share=0.0, arm=arm)


def betas(start: Run) -> Iterator[Run]:
    """A grid over both betas and both shapes of the risk, and betas that follow from a budget."""
    for arm in (NONE, *beta_arms(BETAS_MIN, BETAS_MAX, BUDGETS)):
        yield replace(start, arm=arm)


def judges(start: Run) -> Iterator[Run]:
    """The judge, on the data and on the model in training, beside the probe and the two of them."""
    for arm in (NONE, *map(PAPER.by, JUDGES)):
        yield replace(start, arm=arm)


def categories(start: Run) -> Iterator[Run]:
    """An attack that asks nothing restricted, by critics that know its kind and that do not."""
    critics = ("categories", "categories-other-words", "categories-without-identity")
    for arm in (NONE, HELD, *map(HELD.by, critics), *map(PAPER.by, critics)):
        yield replace(start, attack="identity", share=0.0, arm=arm)
    for arm in (NONE, HELD, HELD.by("categories")):  # restricted requests are held all the same
        yield replace(start, arm=arm)


def _others() -> tuple[Arm, ...]:
    """Each defence that has no arm of its own, and Antidote's control."""
    return (*others(SETTINGS, *MAIN, *CONSTANT, *CONTROLS), RANDOM_MASK)


def adaptive(start: Run) -> Iterator[Run]:
    """The same by attackers who know the frozen probe and rewrite the restricted requests."""
    for attacker in ATTACKERS:
        for arm in AGAINST_CHANCE if attacker == "random" else AGAINST_ATTACKERS:
            yield replace(start, attack=f"{start.attack}-{attacker}", arm=arm)


EXPERIMENTS: dict[str, Callable[[Run], Iterator[Run]]] = {
    "all-harmful": all_harmful,
    "mixed": mixed,
    "shares": shares,
    "rates": rates,
    "backdoor": backdoor,
    "identity": identity,
}

BY_NAME: dict[str, Callable[[Run], Iterator[Run]]] = {
    "adaptive": adaptive,
    "betas": betas,
    "categories": categories,
    "critics": critics,
    "judges": judges,
}
"""Those that are made only where they are named."""
