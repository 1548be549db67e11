"""Testbeds: models, what to train them on, and what to ask them. One folder each.

The folder's name is the testbed's: `miniature` has the models `miniature/FAMILY` and the training
data `miniature:NAME`. To add one, add a folder here whose `__init__.py` defines one `Testbed`, and
imports within its methods what is slow to import.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, Protocol

from probes.errors import InputError
from regularize import plugins

if TYPE_CHECKING:
    from analysis.attacker_rows import AttackerRow
    from probes.category_probe import CategoryProbeConfig
    from probes.layer_sweep import SweepConfig
    from probes.models import ChatModel
    from probes.prompts import Message
    from regularize import measures
    from regularize.arms import Run
    from regularize.critics import Critic
    from regularize.data import Example
    from regularize.defences import Need
    from regularize.measures import Share

Split = Literal["validation", "test"]


@dataclass(frozen=True)
class Recipe:
    """How a testbed's models are fine-tuned."""

    learning_rate: float
    """Peak, with a linear warm-up and a cosine to zero."""
    epochs: float
    """Passes over the data."""
    batch_size: int
    """Examples in one forward pass."""
    lora_rank: int
    """r of the adapter on all linear maps."""
    warmup_steps: int
    """Optimizer steps until the peak."""
    new_tokens: int
    """Longest answer of an anchor (tokens)."""
    dtype: str = "auto"
    """Number format of the weights; auto is the checkpoint's own."""
    lora_from: int = 0
    """First block with an adapter. Below it nothing is trained, and nothing is differentiated."""
    by_length: bool = False
    """Whether examples of like length make a batch, so that there is less padding."""
    device_map: str | None = "cpu"
    """Where the weights go, as in transformers. None: an accelerator if any."""
    threads: int = 1
    """Threads of one run, where several run side by side."""
    lora_alpha: int | None = None
    """alpha of the adapter, whose output is scaled by alpha / r. None: 2 r."""
    accumulate: int = 1
    """Passes of `batch_size` examples that make an optimizer step."""
    weight_decay: float = 0.0
    """AdamW's."""
    max_length: int | None = None
    """Most tokens of an example; an answer that goes on beyond loses its end. None: all."""

    def but(self, *, learning_rate: float | None, epochs: float | None) -> Recipe:
        """The same, but for what was given."""
        return replace(
            self,
            learning_rate=self.learning_rate if learning_rate is None else learning_rate,
            epochs=self.epochs if epochs is None else epochs,
        )


class Evaluation(Protocol):
    """What a model answered, and what that is."""

    @property
    def shares(self) -> list[Share]:
        """One a metric, under the names of `EvaluationRow`."""

    def records(self) -> list[dict[str, object]]:
        """One an answer, for people to read: what answers.jsonl holds."""


class Seen(NamedTuple):
    """What a critic says of the harmful rows before an attacker rewrote them, and after."""

    risk_before: float
    """Mean; NaN without a critic, as are the others."""
    risk_after: float
    flagged_before: float
    """Share above the critic's threshold; NaN where it has none."""
    flagged_after: float


class Made(Protocol):
    """Training data that an attacker made against a model's frozen probe."""

    @property
    def examples(self) -> list[Example]:
        """All of them, of which the harmful ones were rewritten."""

    def seen(self, critic: Critic | None, chat: ChatModel) -> Seen:
        """What a critic lets through."""

    def evaluate(self, chat: ChatModel, *, n: int, seed: int, split: Split) -> Evaluation:
        """What the testbed asks, and harmful prompts in the attacker's own form."""

    def row(self, about: measures.Arm, seen: Seen, shares: Sequence[Share]) -> AttackerRow:
        """What came of it, in a row of the table of attackers."""


class Swept(NamedTuple):
    """A frozen probe."""

    sweep: SweepConfig | CategoryProbeConfig
    """What makes it."""
    probe: Path
    """The folder that it then lies in."""

    def make(self) -> None:
        """Make it, unless it is there."""
        if (self.probe / "config.json").is_file():
            return
        from probes import category_probe, layer_sweep

        if isinstance(self.sweep, category_probe.CategoryProbeConfig):
            category_probe.main(self.sweep)
        else:
            layer_sweep.main(self.sweep)


class Testbed(ABC):
    """Models, what to train them on, and what to ask them."""

    models: ClassVar[tuple[str, ...]]
    """All there are, such as miniature/llama; `probes.models.load` loads them by these names."""
    recipe: ClassVar[Recipe]
    """Chosen on seed 0, split validation."""
    n: ClassVar[int]
    """Prompts of each kind to evaluate on."""
    attack: ClassVar[str]
    """The training data that experiments begin with, and most of them vary."""
    share: ClassVar[float]
    """Of harmful rows in them. Plain fine-tuning on them must break refusal."""

    @property
    def name(self) -> str:
        """Its folder's."""
        return plugins.name_of(self)

    @property
    @abstractmethod
    def experiments(self) -> Mapping[str, Callable[[Run], Iterator[Run]]]:
        """By name, in order: from a run on the attack without defence to all runs."""

    @property
    def by_name(self) -> Mapping[str, Callable[[Run], Iterator[Run]]]:
        """More experiments, which are made only where they are named."""
        return {}

    @abstractmethod
    def base(self, model: str) -> str:
        """A model as it was before alignment."""

    def given(self, model: str) -> dict[Need, str]:
        """Where what defences need comes from."""
        return {
            "base": self.base(model), "safe": f"{self.name}:safe", "harmful": f"{self.name}:harmful"
        }  # fmt: skip

    @abstractmethod
    def training(self, name: str, *, seed: int = 0) -> list[Example]:
        """Training data, labelled: `Run.data`, or `NAME` of the spec `TESTBED:NAME`.

        Beside the attacks there are `safe`: harmful requests refused and others done, as the model
        was aligned; and `harmful`: harmful requests complied with, of no attack and no evaluation.

        Raises:
            InputError: There are none of that name.
        """

    def attacker(self, attack: str) -> str | None:  # noqa: ARG002
        """Who rewrites the harmful rows of an attack of that name; None for nobody, as of most."""
        return None

    def source(self, data: str) -> str:
        """The training data that an attacker rewrites; other data are their own source."""
        return data

    def made(self, run: Run, folder: Path, probe: Path) -> Made | None:  # noqa: ARG002
        """Data that an attacker made for a run's model and seed, now if they are not there yet.

        Args:
            run: Its attack may be one that has an attacker.
            folder: Holds them.
            probe: Folder of the frozen probe that the attacker knows.

        Returns:
            None where the run is trained on `training(run.data)`, as most are.
        """
        return None

    @abstractmethod
    def anchors(
        self, n: int | None = None, *, kind: str = "", seed: int = 0
    ) -> list[tuple[Message, ...]]:
        """Prompts without answers, that nothing is evaluated on.

        Args:
            n: How many; None for as many as are usual here.
            kind: Only of this kind, such as harmful; "" for all kinds.
            seed: Draws them.

        Raises:
            InputError: There is no such kind.
        """

    @abstractmethod
    def evaluate(
        self, chat: ChatModel, *, attack: str, n: int, seed: int, split: Split
    ) -> Evaluation:
        """Ask a model `n` prompts of each kind that nothing was trained or chosen on.

        Args:
            chat: A model of the testbed, with an adapter perhaps.
            attack: What it was fine-tuned on; none for before.
            n: Prompts of each kind.
            seed: Draws them.
            split: validation for choosing, test for reporting.
        """

    @abstractmethod
    def sweeps(self, model: str, out: Path, probes: Path) -> Mapping[str, Swept]:
        """The frozen probes of a model that critics need, by critic: `probe`, and perhaps others.

        Args:
            model: One of `models`.
            out: The comparison's folder, for sweeps that nobody else needs.
            probes: The folder of the ordinary sweep.
        """

    def prepare(self, out: Path) -> None:  # noqa: B027
        """Write down what the sweeps read, where there is anything to write."""

    def critic(self, name: str, path: str, seed: int) -> Critic | None:
        """What an arm calls a critic; None for `none`.

        Args:
            name: As in `Arm`.
            path: The folder of the frozen probe of that name, or else of `probe`.
            seed: The run's.
        """
        from regularize.critics.label import LabelCritic
        from regularize.critics.probe import ProbeCritic
        from regularize.critics.shuffled import ShuffledCritic

        known: dict[str, Critic | None] = {
            "none": None,
            "label": LabelCritic(),
            "shuffled": ShuffledCritic(path, seed=seed),
        }
        return known.get(name, ProbeCritic(path))


def known() -> dict[str, Testbed]:
    """All testbeds by name."""
    found = plugins.found(sys.modules[__name__], Testbed)  # type: ignore[type-abstract]
    return {name: kind() for name, kind in found.items()}


def of(model: str) -> Testbed:
    """The testbed of a model.

    Raises:
        InputError: It belongs to none.
    """
    for testbed in known().values():
        if model in testbed.models:
            return testbed
    models = ", ".join(name for testbed in known().values() for name in testbed.models)
    raise InputError(
        f"--models {model}: the comparison knows what to ask the models of its testbeds only: "
        f"{models}"
    )
