"""No attacker: the rows as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from regularize.attackers import AS_IT_WAS, Attacker, Form, Said, Task, as_it_was

if TYPE_CHECKING:
    from probes.miniature.language import Row


@dataclass(frozen=True)
class Nobody(Attacker):
    """Knows nothing of a probe."""

    def search(self, task: Task) -> list[Form]:
        """None is looked for."""
        return [AS_IT_WAS] * len(task.rows)

    def said(self, row: Row, form: Form) -> Said | None:
        """As it was."""
        return None if form else as_it_was(row)
