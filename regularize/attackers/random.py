"""The negative control: as many rewrites as the paraphraser makes, without a look at the probe."""

from __future__ import annotations

from dataclasses import dataclass

from regularize.attackers import Form, Task
from regularize.attackers._search import wander
from regularize.attackers.paraphrase import ROUNDS, Paraphrase, neighbours


@dataclass(frozen=True)
class Chance(Paraphrase):
    """Paraphrases at random."""

    def search(self, task: Task) -> list[Form]:
        """Chance takes each change."""
        return wander(self, task, neighbours(task.rng), ROUNDS)
