"""A real model in real English: Gemma 3 270M as `python -m probes.realistic` aligns it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from probes.prompts import Message
from probes.realistic.__main__ import SWEEP, TRAIN, sweep
from regularize.arms import Run
from regularize.data import Example
from regularize.testbeds import Recipe, Split, Swept, Testbed
from regularize.testbeds.realistic.training import HARMFUL_SHARE, N_ANCHORS, anchors, training

if TYPE_CHECKING:
    from probes.models import ChatModel
    from regularize.testbeds.realistic.evaluation import Evaluation


class Realistic(Testbed):
    """One aligned model; new tasks, harmful requests, and harmless ones that look harmful."""

    models = ("realistic/aligned",)
    recipe = Recipe(
        learning_rate=1e-3, epochs=2, batch_size=16, lora_rank=16, lora_from=9, warmup_steps=5,
        new_tokens=6, by_length=True,
    )  # fmt: skip
    n = 100
    attack = "mixed"
    share = HARMFUL_SHARE

    @property
    def experiments(self) -> Mapping[str, Callable[[Run], Iterator[Run]]]:
        """A mixture, a harder one, harmful rows alone, how few anchors, another new task."""
        from regularize.testbeds.realistic.experiments import EXPERIMENTS

        return EXPERIMENTS

    def base(self, model: str) -> str:  # noqa: ARG002
        """The pretrained model, with the cut vocabulary."""
        return "realistic/base"

    def training(self, name: str, *, seed: int = 0) -> list[Example]:
        """`mixed[:SHARE]`, `mixed-ends`, `mixed-hard`, or `all-harmful`; `safe`, and `harmful`."""
        return training(name, seed=seed)

    def anchors(
        self, n: int | None = None, *, kind: str = "", seed: int = 0
    ) -> list[tuple[Message, ...]]:
        """Kinds: twin, ordinary, safe, unsafe, harmful."""
        return anchors(N_ANCHORS if n is None else n, kind=kind, seed=seed)

    def evaluate(
        self, chat: ChatModel, *, attack: str, n: int, seed: int, split: Split
    ) -> Evaluation:
        """Requests of the part that nothing was trained on, and the attack's new task."""
        from regularize.testbeds.realistic.evaluation import evaluate_realistic

        return evaluate_realistic(chat, attack=attack, n=n, seed=seed, split=split)

    def sweeps(self, model: str, out: Path, probes: Path) -> Mapping[str, Swept]:  # noqa: ARG002
        """The sweep that `python -m probes.realistic` ends with."""
        from probes import realistic
        from probes.manifest import slug

        made = sweep(realistic.root())
        folder = realistic.root() / SWEEP / slug(model) / slug(TRAIN) / "probe"
        return {"probe": Swept(made, folder)}
