"""What the reference says of data is found once, for all runs that ask it the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
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
        """What the critic said of the same examples, model, chat template and probes, or says."""
        made_from = [
            repr(self.critic),
            [_digest(file) for file in files_of(self.critic)],
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
            known = [risks.s.tolist(), flagged, list(risks.notes)]
            results.replace({path: json.dumps(known).encode()})
        s, flagged, notes = json.loads(path.read_text())
        flags = None if flagged is None else np.array(flagged, dtype=bool)
        return Risks(np.array(s), flags, notes=tuple(notes))

    def live(self, examples: Sequence[Example], first: Risks) -> Live | None:
        """As the critic itself: what is said of a model in training is nobody else's."""
        return self.critic.live(examples, first)


def files_of(critic: object) -> list[Path]:
    """Every file that a critic names, and of every folder (a frozen probe's) the config.json.

    However deep: in its fields, in tuples of them, in the critics that it holds.
    """
    if is_dataclass(critic) and not isinstance(critic, type):
        return [file for one in fields(critic) for file in files_of(getattr(critic, one.name))]
    if isinstance(critic, (tuple, list)):
        return [file for one in critic for file in files_of(one)]
    if not isinstance(critic, (str, Path)) or not str(critic):
        return []
    named = Path(str(critic).partition("?")[0])
    return [file for file in (named, named / "config.json") if _is_file(file)]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a text that is no path: too long, or with a zero in it
        return False


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


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
