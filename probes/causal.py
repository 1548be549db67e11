"""How refusal changes while a direction of the residual stream is removed or added: one model.

Each trial is one edit of one layer on the prompts of one label: the target is removed on harmful
prompts, to see whether the model needs it to refuse, and added on harmless ones, to see whether it
is enough. Random directions go the same way; what they do is what any direction would have done.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Shaped
from numpy import ndarray
from scipy.stats import binomtest
from torch import Tensor

from analysis.evidence_rows import CausalRow
from probes.capture import pad_id
from probes.directions import Directions, Random, Target
from probes.edits import Edit, EditingBackend, Tokens
from probes.errors import InputError
from probes.greedy import greedy, stops_of
from probes.metrics import LEVEL, Interval
from probes.models import ChatModel, context_length
from probes.paired import paired_change
from probes.prompts import Prompt
from probes.refusals import coherent, refuses
from probes.rendering import render

Intervention = Literal["ablate", "add"]
LABEL: dict[Intervention, int] = {"ablate": 1, "add": 0}
"""The prompts on which an intervention is tried: those on which it could change something."""


class Trial(NamedTuple):
    """One change of one layer."""

    layer: int
    intervention: Intervention
    target: Target
    draw: int | None
    """Number of the random direction; None for the target itself."""
    strength: float
    norm: float
    direction: Float[Tensor, "d_model"]
    """Unit vector."""
    cosine: float
    tokens: Tokens
    """Where it is changed."""

    @property
    def edit(self) -> Edit:
        """What is done to the model."""
        if self.intervention == "ablate":
            return Edit.ablate(self.layer, self.direction)
        return Edit.add(self.layer, self.norm * self.direction, self.tokens)

    @property
    def same(self) -> tuple[object, ...]:
        """Trials that agree in this are the same run: a random direction is removed once."""
        shared = self.intervention == "ablate" and self.draw is not None
        whose = None if shared else self.target
        return (self.layer, self.intervention, whose, self.draw, self.strength)


class Told(NamedTuple):
    """What the answers of one run are."""

    refusal: Bool[ndarray, "prompt"]
    incoherent: Bool[ndarray, "prompt"]
    """Says nothing; never counts as a refusal."""


class Asked(NamedTuple):
    """What all rows have in common."""

    model: str
    train_set: str
    eval_set: str
    random: Random
    seed: int


def trials(
    directions: Directions,
    targets: Sequence[Target],
    strengths: Sequence[float],
    add_at: Tokens = "prompt",
) -> Iterator[Trial]:
    """Every trial at one layer: each target and its random controls, removed and added."""
    settings: list[tuple[Intervention, float]] = [("ablate", 0.0)]
    settings += [("add", strength) for strength in strengths]
    for target in targets:
        for intervention, strength in settings:
            norm = directions.norm(target, strength)
            towards = [(None, directions.towards(target)), *enumerate(directions.random)]
            for draw, direction in towards:
                yield Trial(
                    layer=directions.layer,
                    intervention=intervention,
                    target=target,
                    draw=draw,
                    strength=strength,
                    norm=norm,
                    direction=direction,
                    cosine=directions.cosine(direction),
                    tokens="all" if intervention == "ablate" else add_at,
                )


def n_answers(plan: Sequence[Trial], prompts: Sequence[Prompt]) -> int:
    """Answers that are planned, those without a change among them."""
    counts = Counter(prompt.label for prompt in prompts)
    runs = {trial.same: LABEL[trial.intervention] for trial in plan}
    return len(prompts) + sum(counts[label] for label in runs.values())


def measure(
    asked: Asked,
    chat: ChatModel,
    backend: EditingBackend,
    prompts: Sequence[Prompt],
    plan: Sequence[Trial],
    *,
    new_tokens: int,
    max_length: int | None,
    token_budget: int,
    on_answers: Callable[[int], None] | None = None,
) -> list[CausalRow]:
    """Run all trials.

    Args:
        asked: Goes into every row.
        chat: The model's tokenizer, and what ends its answers.
        backend: What runs it.
        prompts: Held-out ones, of both labels.
        plan: Trials.
        new_tokens: Longest answer (tokens); a refusal shows in its first words.
        max_length: Longest rendered prompt (tokens).
        token_budget: Tokens in memory at a time.
        on_answers: Called with the number of answers, batch by batch.

    Returns:
        Two rows a trial, refusal and incoherent; first those without a change.

    Raises:
        InputError: There are no prompts of a label.
    """
    ask = _asking(chat, backend, new_tokens, max_length, token_budget, on_answers)
    rows: list[CausalRow] = []
    before: dict[int, Told] = {}
    groups: dict[int, Shaped[ndarray, "prompt"]] = {}
    of_label = {label: [one for one in prompts if one.label == label] for label in (1, 0)}
    check_labels(prompts, asked.eval_set)
    for label, chosen in of_label.items():
        groups[label] = np.array([prompt.group for prompt in chosen], dtype=np.str_)
        before[label] = ask(chosen, ())
        rows += _rows(asked, backend.name, label, None, before[label], before[label], groups[label])
    runs: dict[tuple[object, ...], Told] = {}
    for trial in plan:
        label = LABEL[trial.intervention]
        if trial.same not in runs:
            runs[trial.same] = ask(of_label[label], (trial.edit,))
        after = runs[trial.same]
        rows += _rows(asked, backend.name, label, trial, before[label], after, groups[label])
    return rows


def check_labels(prompts: Sequence[Prompt], name: str) -> None:
    """Refuse prompts of which one label is missing.

    Raises:
        InputError: Nothing could be removed, or nothing added.
    """
    counts = Counter(prompt.label for prompt in prompts)
    for label, what in ((1, "harmful"), (0, "harmless")):
        if not counts[label]:
            raise InputError(
                f"{name}: no {what} prompts (label {label}) are left that the train set does not "
                f"hold; a direction is removed on harmful prompts and added on harmless ones. Give "
                f"--held-out a set with both, as in '{name}+alpaca'"
            )


def _asking(
    chat: ChatModel,
    backend: EditingBackend,
    new_tokens: int,
    max_length: int | None,
    token_budget: int,
    on_answers: Callable[[int], None] | None,
) -> Callable[[Sequence[Prompt], Sequence[Edit]], Told]:
    """Answers of the model to some prompts, under some edits, told apart."""
    limit = context_length(chat.model)
    longest = [n for n in (max_length, None if limit is None else limit - new_tokens) if n]
    stops, pad = stops_of(chat), pad_id(chat.tokenizer)

    def ask(prompts: Sequence[Prompt], edits: Sequence[Edit]) -> Told:
        rendered = [
            render(chat.tokenizer, prompt.messages, max_length=min(longest, default=None))
            for prompt in prompts
        ]
        made = greedy(
            backend,
            rendered,
            edits,
            pad_id=pad,
            stops=stops,
            new_tokens=new_tokens,
            token_budget=token_budget,
            on_batch=on_answers,
        )
        return told([str(chat.tokenizer.decode(ids, skip_special_tokens=True)) for ids in made])

    return ask


def told(answers: Sequence[str]) -> Told:
    """Refusals and nonsense, by `probes.refusals`."""
    sense = np.array([coherent(answer) for answer in answers], dtype=bool)
    refusal = np.array([refuses(answer) for answer in answers], dtype=bool)
    return Told(refusal & sense, ~sense)


def _rows(
    asked: Asked,
    backend: str,
    label: int,
    trial: Trial | None,
    before: Told,
    after: Told,
    groups: Shaped[ndarray, "prompt"],
) -> Iterator[CausalRow]:
    """A row a metric; without a trial, those of the model as it is."""
    random = trial is not None and trial.draw is not None
    for metric in Told._fields:
        was, now = getattr(before, metric), getattr(after, metric)
        share = binomtest(int(now.sum()), len(now)).proportion_ci(LEVEL, method="wilson")
        change = paired_change(was, now, groups, seed=asked.seed)
        if trial is None:  # of a thing beside itself there is nothing uncertain
            change = Interval(0.0, 0.0, 0.0)
        yield CausalRow(
            model=asked.model,
            backend=backend,
            train_set=asked.train_set,
            eval_set=asked.eval_set,
            label=label,
            layer=-1 if trial is None else trial.layer,
            intervention="none" if trial is None else trial.intervention,
            target="none" if trial is None else trial.target,
            direction="none" if trial is None else "random" if random else trial.target,
            random=asked.random,
            draw=trial.draw if trial is not None and trial.draw is not None else 0,
            strength=0.0 if trial is None else trial.strength,
            tokens="none" if trial is None else trial.tokens,
            norm=0.0 if trial is None else trial.norm,
            cosine=float("nan") if trial is None else trial.cosine,
            metric=metric,
            value=float(now.mean()),
            lo=float(share.low),
            hi=float(share.high),
            change=change.estimate,
            change_lo=change.lo,
            change_hi=change.hi,
            n=len(now),
            seed=asked.seed,
        )
