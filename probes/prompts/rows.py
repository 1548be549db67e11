"""A labelled prompt, and a set of them: what readers of prompts give and probes take."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:  # `--help` imports this module and needs no arrays
    import numpy as np
    from jaxtyping import Bool, Int64, Shaped


class Message(TypedDict):
    """One turn of a chat, in OpenAI's form."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request as a chat, with its label. Make it with `Prompt.of`."""

    id: str
    """16 hex digits of the SHA-256 of the messages: equal for equal chats of whatever source."""
    messages: tuple[Message, ...]
    """The chat in OpenAI's form; the last message is the user's."""
    label: int
    """1 = harmful, 0 = harmless."""
    source: str
    """The set that the prompt came from."""
    group: str
    """Rows of one group never straddle train and test. A prompt alone is its own group."""
    categories: tuple[str, ...] = ()
    """The kinds of harm, where the source says them; of a harmless prompt none."""

    @classmethod
    def of(
        cls,
        prompt: str | Sequence[Message],
        *,
        label: int,
        source: str,
        group: str | None = None,
        categories: Sequence[str] = (),
    ) -> Prompt:
        """A prompt from a user's text or from a whole chat."""
        chat = [Message(role="user", content=prompt)] if isinstance(prompt, str) else prompt
        messages = tuple(Message(role=m["role"], content=m["content"]) for m in chat)
        canonical = json.dumps(messages, sort_keys=True, separators=(",", ":"))
        digest = hashlib.sha256(canonical.encode()).hexdigest()[:16]
        kinds = tuple(categories) if label else ()
        return cls(digest, messages, label, source, digest if group is None else group, kinds)

    @property
    def text(self) -> str:
        """What the user said: all the user's turns, joined by newlines."""
        return "\n".join(m["content"] for m in self.messages if m["role"] == "user")


@dataclass(frozen=True)
class PromptSet:
    """Prompts in a fixed order, with the name, licence and citation to report beside them."""

    name: str
    prompts: tuple[Prompt, ...]
    licence: str = ""
    citation: str = ""
    notes: tuple[str, ...] = ()
    """Where the rows came from and what was done to them on the way in, for people to read."""

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def labels(self) -> Int64[np.ndarray, "prompt"]:
        """1 = harmful, 0 = harmless."""
        import numpy as np

        return np.array([prompt.label for prompt in self.prompts], dtype=np.int64)

    @property
    def groups(self) -> Shaped[np.ndarray, "prompt"]:
        """Group names as a numpy array of strings."""
        import numpy as np

        return np.array([prompt.group for prompt in self.prompts], dtype=np.str_)

    @property
    def texts(self) -> list[str]:
        """What the user said in each prompt."""
        return [prompt.text for prompt in self.prompts]

    @property
    def messages(self) -> list[tuple[Message, ...]]:
        """The chat of each prompt."""
        return [prompt.messages for prompt in self.prompts]

    @property
    def categories(self) -> tuple[str, ...]:
        """The names of all categories, by the alphabet."""
        return tuple(sorted({name for prompt in self.prompts for name in prompt.categories}))

    def of_category(self, name: str) -> Int64[np.ndarray, "prompt"]:
        """1 = of this category."""
        import numpy as np

        return np.array([name in prompt.categories for prompt in self.prompts], dtype=np.int64)

    def kept(self, keep: Bool[np.ndarray, "_"]) -> PromptSet:
        """The set with some of its rows alone."""
        rows = zip(self.prompts, keep.tolist(), strict=True)
        return replace(self, prompts=tuple(prompt for prompt, kept in rows if kept))

    @property
    def hash(self) -> str:
        """SHA-256 over ids, labels and groups in order: equal sets, and only they, share it."""
        rows = [[prompt.id, prompt.label, prompt.group] for prompt in self.prompts]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()
