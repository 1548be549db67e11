"""The frozen probe as an attacker has it: prompts in, log-odds of harm out, each asked once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from probes.frozen import FrozenProbe
    from probes.models import ChatModel
    from probes.prompts import Message

Prompt = tuple["Message", ...]


class Oracle:
    """Batched and cached. Log-odds, as near 1 the probabilities of a float are all the same."""

    def __init__(self, chat: ChatModel, probe: FrozenProbe) -> None:
        self.chat, self.probe = chat, probe
        self._known: dict[tuple[tuple[str, str], ...], float] = {}

    @property
    def queries(self) -> int:
        """Different prompts that were asked about."""
        return len(self._known)

    def __call__(self, prompts: Sequence[Prompt]) -> list[float]:
        """Log-odds of harm of each prompt.

        Raises:
            InputError: The probe was fitted on another model.
        """
        keys = [tuple((turn["role"], turn["content"]) for turn in prompt) for prompt in prompts]
        new = {k: p for k, p in zip(keys, prompts, strict=True) if k not in self._known}
        if new:
            found = self.probe.logits(self.chat.model, self.chat.tokenizer, list(new.values()))
            self._known.update(zip(new, found.tolist(), strict=True))
        return [self._known[key] for key in keys]
