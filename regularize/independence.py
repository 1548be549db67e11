"""No model judges itself, nor does the critic that weighed its training.

A model does not see what it would not say, and it has learnt to please its critic.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from probes.errors import InputError
from probes.models import ChatModel, weights_fingerprint
from regularize.detectors import Detector
from regularize.specs import Spec

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def refuse_partial(
    detectors: Sequence[Detector],
    chat: ChatModel,
    adapter: Path | None,
    *,
    option: str = "--detector",
) -> None:
    """Refuse judges that have a part in what they judge, under whatever name.

    Args:
        detectors: Who is to judge.
        chat: The evaluated model, without its adapter.
        adapter: Folder of the run that made its adapter, where its run.json lies.
        option: Of the command line, that named them.

    Raises:
        InputError: A detector has the model's own weights, or was the critic of the run.
    """
    critic = set() if adapter is None else _critic(adapter / "run.json")
    for detector in detectors:
        where = Spec.parse(detector.name).where
        if where and where in critic:
            raise InputError(
                f"{option} {detector.name}: it was the critic when {adapter} was trained; name "
                "another, or give --allow-same-judge"
            )
        if detector.chat is None:
            continue
        if _same(detector.chat.model, chat.model):
            raise InputError(
                f"{option} {detector.name}: these are the weights of {chat.name} itself, which "
                "shares the blind spots of its answers; name another, or give --allow-same-judge"
            )


def _same(a: PreTrainedModel, b: PreTrainedModel) -> bool:
    """Whether two models have the same weights; where an engine holds them, the same origin."""
    if not any(next(one.parameters()).is_meta for one in (a, b)):
        return weights_fingerprint(a) == weights_fingerprint(b)
    names = [(one.config.name_or_path, getattr(one.config, "_commit_hash", None)) for one in (a, b)]
    return names[0] == names[1]


def _critic(path: Path) -> set[str]:
    """What the critic's options name, in the run.json of a training run; nothing without one."""
    if not path.is_file():
        return set()
    try:
        critic = json.loads(path.read_text(encoding="utf-8")).get("critic")
    except (ValueError, AttributeError) as error:
        raise InputError(f"{path} is not the run.json of a training run: {error}") from error
    return {str(value) for value in critic.values()} if isinstance(critic, dict) else {str(critic)}
