"""transformers, in this process: the default."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from probes.prompts import Message
from regularize.engines import Asking, Engine, Loading
from regularize.generation import Decided, answers


@dataclass
class Transformers(Engine):
    """Answers by `generation.answers`."""

    @classmethod
    def load(cls, loading: Loading) -> Self:
        """See `probes.models.load`."""
        from probes import models

        return cls(
            models.load(
                loading.model,
                revision=loading.revision,
                dtype=loading.dtype,
                device_map=loading.device_map,
                chat_template=loading.chat_template,
            )
        )

    def adapt(self, adapter: Path, *, allow_other_base: bool = False) -> None:
        """See `adapters.attach`."""
        from regularize.adapters import attach

        self.chat = attach(self.chat, adapter, allow_other_base=allow_other_base)

    def answers(
        self,
        prompts: Sequence[Sequence[Message]],
        asking: Asking,
        *,
        adapted: bool,
        decided: Decided | None = None,
    ) -> list[str]:
        """See `Engine.answers`."""
        from regularize.model import adapter_off

        with nullcontext() if adapted else adapter_off(self.chat.model):
            return answers(self.chat, prompts, decided=decided, **asdict(asking))
