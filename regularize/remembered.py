"""What the reference says of data is found once, for all runs that ask it the same."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from analysis import results
from probes import models
from probes.manifest import json_hash
from probes.models import ChatModel
from probes.prompts import Message
from probes.rendering import template_hash
from regularize import anchors as anchoring
from regularize.critics import Critic, Live, Risks
from regularize.data import Example


@dataclass(frozen=True)
class Remembered(Critic):
    """A critic whose risks lie in a folder once they are known."""

    critic: Critic
    folder: Path

    def assess(self, examples: Sequence[Example], chat: ChatModel) -> Risks:
        """What the critic said of the same examples, model, chat template and probe, or says."""
        probe = Path(getattr(self.critic, "path", None) or "", "config.json")
        made_from = [
            repr(self.critic),
            probe.read_text() if probe.is_file() else None,
            *([dict(self.critic.sources)] if self.critic.sources else []),
            models.weights_fingerprint(chat.model),
            template_hash(chat.tokenizer),
            list(examples),
        ]
        path = self.folder / f"risks-{json_hash(made_from)[:16]}.json"
        if not path.is_file():
            risks = self.critic.assess(examples, chat)
            if risks.failed is not None:  # it may do better another time
                return risks
            flagged = None if risks.flagged is None else risks.flagged.tolist()
            results.replace({path: json.dumps([risks.s.tolist(), flagged]).encode()})
        s, flagged = json.loads(path.read_text())
        return Risks(np.array(s), None if flagged is None else np.array(flagged, dtype=bool))

    def live(self, examples: Sequence[Example], first: Risks) -> Live | None:
        """As the critic itself: what is said of a model in training is nobody else's."""
        return self.critic.live(examples, first)


def answered(
    chat: ChatModel, prompts: list[tuple[Message, ...]], new_tokens: int, folder: Path
) -> list[Example]:
    """Anchors as the reference answers them, with the answers that lie in a folder once made.

    Args:
        chat: The frozen reference.
        prompts: The anchors' prompts.
        new_tokens: Longest answer (tokens).
        folder: Holds the answers to the same prompts by the same model, if they are known.
    """
    made_from = [
        models.weights_fingerprint(chat.model), template_hash(chat.tokenizer), prompts, new_tokens
    ]  # fmt: skip
    path = folder / f"anchors-{json_hash(made_from)[:16]}.jsonl"
    if not path.is_file():
        anchoring.write(anchoring.answered(chat, prompts, max_new_tokens=new_tokens), path)
    return anchoring.read(path)


def replies(
    chat: ChatModel, prompts: Sequence[Sequence[Message]], new_tokens: int, folder: Path
) -> list[str]:
    """The reference's own answers, one a prompt, greedily; those that lie in a folder once made.

    Args:
        chat: The frozen reference.
        prompts: Whole chats.
        new_tokens: Longest answer (tokens).
        folder: Holds the answers to the same prompts by the same model, if they are known.
    """
    from regularize.generation import answers

    made_from = [
        models.weights_fingerprint(chat.model), template_hash(chat.tokenizer),
        [list(prompt) for prompt in prompts], new_tokens,
    ]  # fmt: skip
    path = folder / f"answers-{json_hash(made_from)[:16]}.json"
    if not path.is_file():
        found = answers(chat, prompts, max_new_tokens=new_tokens)
        results.replace({path: json.dumps(found).encode()})
    return [str(answer) for answer in json.loads(path.read_text())]
