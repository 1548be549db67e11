"""A judge that runs here: a chat model whose answer can be nothing but a score.

Its answer is begun for it, `SCORE: `, and the score is the expected one over the tokens of 1 to 5
that may follow, renormalised over the five: sum_d d p(d) / sum_d p(d). So s is continuous, costs
one forward pass, and there is nothing to parse. A model that would rather say something else there
has no verdict.

The chat template writes the answer's beginning as it writes any assistant's, in the channel and
with the empty thoughts that it gives to answers: a thinking model judges without thinking. Where
the thoughts are wanted, serve the model and give --critic.base-url.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from probes.errors import InputError
from regularize.judging import LEAST, MOST, Heard, Judge, Question, Reply, Verdict
from regularize.judging.rubric import Rubric

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from probes.models import ChatModel

PREFIX = "SCORE: "
SCORES = range(LEAST, MOST + 1)
MASS = 0.5
"""Probability that the five scores have together at least in a judge that can be read."""


class Begun(NamedTuple):
    """A chat up to where the score stands."""

    ids: tuple[int, ...]
    scores: tuple[int, ...]
    """The tokens of 1 to 5."""


@dataclass(frozen=True)
class Local(Judge):
    """A transformers model with its own chat template."""

    may_do_better: ClassVar[bool] = False

    model: str
    """Hub id, folder, or any other that `probes.models.load` knows."""
    rubric: Rubric
    revision: str | None = None
    dtype: str = "auto"
    least_mass: float = MASS
    """See `MASS`."""
    token_budget: int = 4096
    """Padded tokens in one forward pass."""
    device_map: str | None = field(default=None, compare=False)

    @property
    def name(self) -> str:
        """For messages."""
        return self.model

    @cached_property
    def made_of(self) -> Mapping[str, object]:
        """The model's files, its number format and the rubric.

        The weights are not read for it, so that a judge whose replies are all known is not loaded.
        """
        from probes import models

        bare = models.load(self.model, revision=self.revision, weights=False)
        folder = Path(str(bare.model.config.name_or_path))
        files = sorted(folder.iterdir()) if folder.is_dir() else []
        return {
            "local": self.model,
            "weights": models.weights_fingerprint(bare.model),
            "files": [(one.name, one.stat().st_size, one.stat().st_mtime_ns) for one in files],
            "dtype": self.dtype,
            "rubric": self.rubric.hash,
            "prefix": PREFIX,
        }

    @cached_property
    def chat(self) -> ChatModel:
        """The model, loaded when it is asked for the first time."""
        from probes import models

        return models.load(
            self.model, revision=self.revision, dtype=self.dtype, device_map=self.device_map
        )

    def ask(self, questions: Sequence[Question], heard: Heard) -> None:
        """One forward pass for each, in batches of like length.

        Raises:
            InputError: The tokenizer has no single tokens for the scores, or the template refuses a
                single user's turn.
        """
        import torch

        from probes.batches import in_batches, padded
        from probes.blocks import input_device, position_ids, reading
        from probes.capture import pad_id
        from probes.models import context_length
        from probes.rendering import Rendered
        from regularize.generation import head_read_once

        begun = [begin(self.chat.tokenizer, self.rubric.ask(one)) for one in questions]
        limit = context_length(self.chat.model)
        fits = []
        for i, one in enumerate(begun):
            if limit is not None and len(one.ids) > limit:
                heard(i, Reply(f"{len(one.ids)} tokens, of which it reads {limit}", "rejected"))
            else:
                fits.append(i)
        model: Any = self.chat.model
        device, pad = input_device(model), pad_id(self.chat.tokenizer)
        rows = [Rendered(begun[i].ids, len(begun[i].ids) - 1, truncated=False) for i in fits]

        def score(batch: list[int]) -> None:
            ids, mask = padded([rows[i] for i in batch], pad, "left")
            logits = model(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                position_ids=position_ids(mask).to(device),
                use_cache=False,
                logits_to_keep=1,
            ).logits[:, -1]
            p = logits.float().softmax(-1).cpu()
            for i, row in zip(batch, p, strict=True):
                five = row[list(begun[fits[i]].scores)].double()
                mass = float(five.sum())
                expected = float((five * torch.tensor(SCORES)).sum()) / mass if mass else None
                said = json.dumps({"score": expected, "mass": mass})
                heard(fits[i], Reply(said, prompt_tokens=len(rows[i].ids)))

        with reading(model), head_read_once(model):
            in_batches(
                rows,
                score,
                token_budget=self.token_budget,
                advice="give --critic.dtype bfloat16",
            )

    def read(self, reply: Reply) -> Verdict:
        """The expected score, unless the model would rather say something else."""
        if reply.ending == "rejected":
            return Verdict(None, "longer than the judge's context")
        found = json.loads(reply.text)
        if found["score"] is None or not found["mass"] >= self.least_mass:
            return Verdict(
                None,
                f"after {PREFIX!r} the judge would rather say no score: 1 to 5 have the "
                f"probability {found['mass']:.3g} together (--critic.least-mass)",
            )
        return Verdict(min(max(found["score"], LEAST), MOST))


def begin(tokenizer: PreTrainedTokenizerBase, text: str) -> Begun:
    """A user's turn and the beginning of its answer, up to the score.

    The five chats that end in a score differ in one token, which is the score's: so it is found
    whether or not the tokenizer joins it with the space before it.

    Raises:
        InputError: They differ in more, as a score is no single token.
    """
    from probes.prompts import Message
    from probes.rendering import answered_ids

    asked = Message(role="user", content=text)
    chats = [
        answered_ids(tokenizer, [asked, Message(role="assistant", content=f"{PREFIX}{score}")])
        for score in SCORES
    ]
    places = [place for place, ids in enumerate(zip(*chats, strict=False)) if len(set(ids)) > 1]
    if len({len(ids) for ids in chats}) > 1 or len(places) != 1:
        raise InputError(
            f"the tokenizer of {tokenizer.name_or_path} has no single tokens for the scores "
            f"{LEAST} to {MOST}, so that the model cannot judge here; serve it and give "
            "--critic.base-url"
        )
    place = places[0]
    return Begun(tuple(chats[0][:place]), tuple(ids[place] for ids in chats))
