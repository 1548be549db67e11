"""Examples -> what is trained on: encoded, with their risks, with anchors beside them.

All that looks at the frozen reference happens here, before training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64

from probes.errors import InputError
from probes.models import ChatModel
from regularize.critics import Critic, Live, Risks
from regularize.data import Encoded, Example, encode
from regularize.defences import Defence


class Prepared(NamedTuple):
    """Data to train on, and what a person may want to see of them."""

    examples: list[Example]
    """Without the anchors."""
    encoded: list[Encoded]
    """One an example."""
    risks: Risks
    """One an example."""
    s: Float64[np.ndarray, "example"]
    """The risk as it enters the weights."""
    kept: Bool[np.ndarray, "example"]
    """Whether the defence trains on it at all."""
    anchors: list[Encoded]
    """Prompts answered by the reference."""
    safe: Sequence[Encoded] = ()
    """Safe data that are trained on in turns of their own."""
    live: Live | None = None
    """How the risks go on in training; None where they are constants."""

    def rows(self) -> list[dict[str, Any]]:
        """What the trainer reads: the kept examples, then the anchors, then the safe data."""
        chosen = [
            {**one._asdict(), "risk": float(s), "anchor": False}
            for one, s, kept in zip(self.encoded, self.s, self.kept, strict=True)
            if kept
        ]
        anchors = [{**one._asdict(), "risk": 1.0, "anchor": True} for one in self.anchors]
        safe = [{**one._asdict(), "risk": 0.0, "anchor": False} for one in self.safe]
        return [{**row, "row": i} for i, row in enumerate([*chosen, *anchors, *safe])]

    @property
    def trained_on(self) -> list[Encoded]:
        """The same as ids and labels, in the same order."""
        kept = [one for one, keep in zip(self.encoded, self.kept, strict=True) if keep]
        return [*kept, *self.anchors, *self.safe]


def plain(
    examples: Sequence[Example], chat: ChatModel, *, max_length: int | None = None
) -> list[dict[str, Any]]:
    """Examples to evaluate on, in the form of `Prepared.rows`, without risk or reference.

    Raises:
        InputError: A row cannot be encoded.
    """
    encoded = (encode(one, chat.tokenizer, max_length=max_length) for one in examples)
    return [{**one._asdict(), "risk": 0.0, "anchor": False, "row": -1} for one in encoded]


def prepare(
    chat: ChatModel,
    examples: Sequence[Example],
    *,
    critic: Critic | None,
    defence: Defence,
    anchors: Sequence[Example] = (),
    max_length: int | None = None,
) -> Prepared:
    """Encode the examples and assess their risks.

    Args:
        chat: The frozen reference.
        examples: The data.
        critic: None where the defence needs no risk.
        defence: Shapes the risks and says which examples are kept.
        anchors: Prompts with the reference's own answers.
        max_length: Most tokens of an example.

    Raises:
        InputError: A row cannot be encoded, the critic does not hold here, a risk is missing, or
            the defence keeps nothing.
    """
    defence.check()
    if not examples:
        raise InputError("the training data hold no rows")
    encoded = [encode(one, chat.tokenizer, max_length=max_length) for one in examples]
    if critic is not None:
        risks = critic.assess(examples, chat)
    elif defence.needs_risk:
        raise InputError(f"{type(defence).__name__} needs a critic: give one, such as critic:probe")
    else:
        risks = Risks(np.zeros(len(examples)), None)
    if len(risks.s) != len(examples) or not bool(((risks.s >= 0) & (risks.s <= 1)).all()):
        raise InputError(f"{type(critic).__name__} gave risks that are not one a row in [0, 1]")
    kept = defence.keeps(risks)
    live = None if critic is None else critic.live(examples, risks)
    if live is not None and type(defence).keeps is not Defence.keeps:
        raise InputError(
            f"{type(defence).__name__} leaves rows out before training, and this critic goes on "
            "judging them in it: choose --critic.mode data, or a defence that weighs the rows"
        )
    if not kept.any() and not anchors:
        raise InputError(
            f"{type(defence).__name__} keeps none of the {len(examples)} rows: nothing would be "
            "learnt. Look at the risks (--risk-only); raise the threshold or choose another defence"
        )
    return Prepared(
        list(examples),
        encoded,
        risks,
        defence.signal(risks),
        kept,
        [encode(one, chat.tokenizer, max_length=max_length) for one in anchors],
        live=live,
    )
