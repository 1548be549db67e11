"""All readouts of one model on one train set, scored on unseen folds and on held-out sets.

The train set's own scores are of the probes that were not trained on a row's fold; a held-out set
is scored by the probe fitted on the whole train set, and rows that the train set holds too are left
out of it. The lexical floors go the same way, on the same folds.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64
from numpy import ndarray
from scipy.special import expit
from tqdm import tqdm

from analysis.results import RiskRow, ScoreRow
from probes import floors, metrics
from probes.features import MEMORY, Layers
from probes.folds import Folds
from probes.probe import CrossValidated, LinearReadout, Readout, cross_validate, fit
from probes.prompts import PromptSet


class Captured(NamedTuple):
    """A prompt set and what a model makes of it."""

    prompts: PromptSet
    acts: Layers


class Where(NamedTuple):
    """What the rows of one model and train set have in common."""

    model: str
    hook_point: str
    position: str
    seed: int


class Fitted(NamedTuple):
    """One readout: scored out of fold, and fitted on the whole train set."""

    probe: LinearReadout
    out_of_fold: CrossValidated
    auroc: metrics.Interval
    """In-distribution."""


class Sweep(NamedTuple):
    """What a model gives on one train set."""

    scores: list[ScoreRow]
    layers: list[Fitted]
    """By layer."""
    pooled: Fitted
    """Mean over layers."""


class Lexical(NamedTuple):
    """A floor's AUROC: of the words alone, and so the same for every model."""

    floor: floors.Floor
    inside: metrics.Interval
    outside: list[metrics.Interval]
    """By held-out set."""


def kinds(n_layers: int) -> Iterator[tuple[Readout, tuple[int, ...]]]:
    """Every readout of a model, and the layers that it reads."""
    yield "embedding", ()
    for layer in range(n_layers):
        yield "layer", (layer,)
    for layer in range(n_layers):
        yield "class-mean", (layer,)
    yield "pooled-mean", tuple(range(n_layers))
    yield "pooled-concat", tuple(range(n_layers))


def lexical(
    train: PromptSet,
    held_out: Sequence[PromptSet],
    *,
    folds: int,
    seed: int,
    progress: bool = False,
) -> list[Lexical]:
    """Score the lexical floors on the probes' own folds and held-out rows.

    Raises:
        InputError: The train set has too few groups for the folds, or one class only.
    """
    split = Folds.of(train.labels, train.groups, folds=folds, seed=seed)
    inside, outside = [], []
    for floor in tqdm(floors.FLOORS, "  lexical floors", unit="floor", disable=not progress):
        inside.append(floors.cross_validated_scores(floor, train.texts, train.labels, split))
        outside.append(
            floors.held_out_scores(
                floor, train.texts, train.labels, split, [other.texts for other in held_out]
            )
        )
    found = _aurocs(train, held_out, split, inside, outside, seed)
    return [Lexical(floor, *one) for floor, one in zip(floors.FLOORS, found, strict=True)]


def sweep(
    where: Where,
    train: Captured,
    held_out: Sequence[Captured],
    words: Sequence[Lexical],
    *,
    folds: int,
    Cs: Sequence[float],
    memory: int = MEMORY,
    progress: bool = False,
) -> Sweep:
    """Fit every readout, score it everywhere.

    Args:
        where: Goes into every row.
        train: What the probes are fitted on.
        held_out: What they are only scored on.
        words: `lexical` of the same sets, to stand beside the probes.
        folds: Cross-validation folds.
        Cs: Inverse strengths of the L2 penalty to choose from.
        memory: Bytes of features that a fit may hold; more are streamed.
        progress: Whether to show a bar over the readouts, with the time left.

    Raises:
        InputError: The train set has too few groups for the folds, or one class only.
    """
    labels = train.prompts.labels
    split = Folds.of(labels, train.prompts.groups, folds=folds, seed=where.seed)
    unseen = [other.prompts for other in held_out]
    out_of_fold: list[CrossValidated] = []
    probes: list[LinearReadout] = []
    bar = tqdm(list(kinds(train.acts.n_layers)), "  fitting", unit="probe", disable=not progress)
    for readout, layers in bar:
        out_of_fold.append(
            cross_validate(
                train.acts, labels, split, readout=readout, layers=layers, Cs=Cs, memory=memory
            )
        )
        probes.append(
            fit(train.acts, labels, split, readout=readout, layers=layers, Cs=Cs, memory=memory)
        )
    aurocs = _aurocs(
        train.prompts,
        unseen,
        split,
        [found.logits for found in out_of_fold],
        [[probe.logits(other.acts) for other in held_out] for probe in probes],
        where.seed,
    )
    sets = [train.prompts, *unseen]
    scores: list[ScoreRow] = []
    fitted: list[Fitted] = []
    for probe, found, (inside, outside) in zip(probes, out_of_fold, aurocs, strict=True):
        fitted.append(Fitted(probe, found, inside))
        scores += _rows(where, probe.readout, layer_of(probe), probe.C, sets, [inside, *outside])
    for floor in words:
        scores += _rows(where, floor.floor, -1, None, sets, [floor.inside, *floor.outside])
    return Sweep(
        scores,
        layers=[one for one in fitted if one.probe.readout == "layer"],
        pooled=next(one for one in fitted if one.probe.readout == "pooled-mean"),
    )


def layer_of(probe: LinearReadout) -> int:
    """The single layer that a probe reads, or -1."""
    return probe.layers[0] if probe.readout in ("layer", "class-mean") else -1


def new_rows(train: PromptSet, other: PromptSet) -> Bool[ndarray, "prompt"]:
    """The rows of another set that the train set does not hold."""
    known = {prompt.id for prompt in train.prompts}
    return np.array([prompt.id not in known for prompt in other.prompts], dtype=bool)


def risks(
    where: Where, chosen: Fitted, train: Captured, held_out: Sequence[Captured]
) -> list[RiskRow]:
    """The chosen probe's risk of every prompt; out of fold for the train set."""

    def rows(prompts: PromptSet, logits: Float64[ndarray, "prompt"], out: bool) -> list[RiskRow]:
        return [
            RiskRow(
                model=where.model,
                readout=chosen.probe.readout,
                layer=layer_of(chosen.probe),
                train_set=train.prompts.name,
                eval_set=prompts.name,
                held_out=out,
                id=prompt.id,
                label=prompt.label,
                risk=float(risk),
            )
            for prompt, risk in zip(prompts.prompts, expit(logits), strict=True)
        ]

    found = rows(train.prompts, chosen.out_of_fold.logits, False)
    for other in held_out:
        keep = new_rows(train.prompts, other.prompts)
        every = rows(other.prompts, chosen.probe.logits(other.acts), True)
        found += [row for row, kept in zip(every, keep, strict=True) if kept]
    return found


def _aurocs(
    train: PromptSet,
    held_out: Sequence[PromptSet],
    split: Folds,
    inside: Sequence[Float64[ndarray, "prompt"]],
    outside: Sequence[Sequence[Float64[ndarray, "_"]]],
    seed: int,
) -> list[tuple[metrics.Interval, list[metrics.Interval]]]:
    """Each readout's AUROC on the train set and on each held-out set.

    Args:
        train: The train set.
        held_out: The others.
        split: Folds of the train set.
        inside: Each readout's out-of-fold scores.
        outside: Each readout's scores of each held-out set.
        seed: Of the bootstrap, whose draws all readouts share.
    """
    own = metrics.auroc_intervals(train.labels, inside, train.groups, fold=split.fold, seed=seed)
    others = []
    for i, other in enumerate(held_out):
        keep = new_rows(train, other)
        scores = [found[i][keep] for found in outside]
        others.append(
            metrics.auroc_intervals(other.labels[keep], scores, other.groups[keep], seed=seed)
        )
    return [(one, [found[k] for found in others]) for k, one in enumerate(own)]


def _rows(
    where: Where,
    readout: str,
    layer: int,
    C: float | None,
    sets: Sequence[PromptSet],
    aurocs: Sequence[metrics.Interval],
) -> Iterator[ScoreRow]:
    """A row for the train set, the first one, and for each held-out set."""
    train = sets[0]
    for prompts, auroc in zip(sets, aurocs, strict=True):
        labels = prompts.labels if prompts is train else prompts.labels[new_rows(train, prompts)]
        n_pos = int(labels.sum())
        yield ScoreRow(
            model=where.model,
            hook_point=where.hook_point,
            position=where.position,
            layer=layer,
            readout=readout,
            train_set=train.name,
            eval_set=prompts.name,
            held_out=prompts is not train,
            n_pos=n_pos,
            n_neg=len(labels) - n_pos,
            auroc=float(auroc.estimate),
            auroc_lo=float(auroc.lo),
            auroc_hi=float(auroc.hi),
            seed=where.seed,
            C=float("nan") if C is None else C,
        )
