"""All readouts of one model on one train set, scored on unseen folds and on held-out sets.

The train set's own scores are of the probes that were not trained on a row's fold; a held-out set
is scored by the probe fitted on the whole train set, on the rows that are new (`leaks.new`). The
lexical floors go the same way, on the same folds.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

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


class HeldOut(NamedTuple):
    """A set that is only scored."""

    prompts: PromptSet
    """Those that are scored."""
    acts: Layers
    """Of the whole set."""
    keep: Bool[ndarray, "_"]
    """Which rows of it are scored."""


class Where(NamedTuple):
    """What the rows of one model and train set have in common."""

    model: str
    hook_point: str
    position: str
    seed: int


class Judged(NamedTuple):
    """The log-odds that one readout or floor gives, and their AUROC."""

    readout: str
    layer: int
    """The single one that it reads, or -1."""
    inside: Float64[ndarray, "prompt"]
    """Of the train set, out of fold."""
    outside: list[Float64[ndarray, "_"]]
    """Of the rows that are scored, by held-out set."""
    aurocs: list[metrics.Interval]
    """On the train set, and on each held-out set."""

    @property
    def every(self) -> list[Float64[ndarray, "_"]]:
        """Of the train set, and of each held-out set."""
        return [self.inside, *self.outside]


class Fitted(NamedTuple):
    """One readout: scored out of fold, and fitted on the whole train set."""

    probe: LinearReadout
    out_of_fold: CrossValidated
    judged: Judged

    @property
    def auroc(self) -> metrics.Interval:
        """In-distribution."""
        return self.judged.aurocs[0]


class Sweep(NamedTuple):
    """What a model gives on one train set."""

    scores: list[ScoreRow]
    fitted: list[Fitted]
    """Every readout."""

    @property
    def layers(self) -> list[Fitted]:
        """By layer."""
        return [one for one in self.fitted if one.probe.readout == "layer"]

    @property
    def pooled(self) -> Fitted:
        """Mean over layers."""
        return next(one for one in self.fitted if one.probe.readout == "pooled-mean")


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
) -> list[Judged]:
    """Score the lexical floors on the probes' own folds and held-out rows.

    They see the words alone, and are the same for every model.

    Raises:
        InputError: The train set has too few groups for the folds, or one class only.
    """
    split = Folds.of(train.labels, train.groups, folds=folds, seed=seed)
    texts = [other.texts for other in held_out]
    inside, outside = [], []
    for floor in tqdm(floors.FLOORS, "  lexical floors", unit="floor", disable=not progress):
        inside.append(floors.cross_validated_scores(floor, train.texts, train.labels, split))
        outside.append(floors.held_out_scores(floor, train.texts, train.labels, split, texts))
    found = _aurocs(train, held_out, split, inside, outside, seed)
    return [
        Judged(floor, -1, own, others, aurocs)
        for floor, own, others, aurocs in zip(floors.FLOORS, inside, outside, found, strict=True)
    ]


def sweep(
    where: Where,
    train: Captured,
    held_out: Sequence[HeldOut],
    words: Sequence[Judged],
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
    unseen = [other.prompts for other in held_out]
    inside = [found.logits for found in out_of_fold]
    outside = [[probe.logits(other.acts)[other.keep] for other in held_out] for probe in probes]
    aurocs = _aurocs(train.prompts, unseen, split, inside, outside, where.seed)
    fitted = [
        Fitted(probe, found, Judged(probe.readout, layer_of(probe), found.logits, others, own))
        for probe, found, others, own in zip(probes, out_of_fold, outside, aurocs, strict=True)
    ]
    sets = [train.prompts, *unseen]
    scores: list[ScoreRow] = []
    for one in fitted:
        scores += _rows(where, one.judged, one.probe.C, sets)
    for floor in words:
        scores += _rows(where, floor, None, sets)
    return Sweep(scores, fitted)


def layer_of(probe: LinearReadout) -> int:
    """The single layer that a probe reads, or -1."""
    return probe.layers[0] if probe.readout in ("layer", "class-mean") else -1


def risks(
    where: Where, chosen: Fitted, train: PromptSet, held_out: Sequence[PromptSet]
) -> list[RiskRow]:
    """The chosen probe's risk of every prompt that is scored; out of fold for the train set."""
    judged = chosen.judged
    return [
        RiskRow(
            model=where.model,
            readout=judged.readout,
            layer=judged.layer,
            train_set=train.name,
            eval_set=prompts.name,
            held_out=prompts is not train,
            id=prompt.id,
            label=prompt.label,
            risk=float(risk),
        )
        for prompts, logits in zip([train, *held_out], judged.every, strict=True)
        for prompt, risk in zip(prompts.prompts, expit(logits), strict=True)
    ]


def _aurocs(
    train: PromptSet,
    held_out: Sequence[PromptSet],
    split: Folds,
    inside: Sequence[Float64[ndarray, "prompt"]],
    outside: Sequence[Sequence[Float64[ndarray, "_"]]],
    seed: int,
) -> list[list[metrics.Interval]]:
    """Each readout's AUROC on the train set and on each held-out set.

    Args:
        train: The train set.
        held_out: The rows of the others that are scored.
        split: Folds of the train set.
        inside: Each readout's out-of-fold scores.
        outside: Each readout's scores of each held-out set.
        seed: Of the bootstrap, whose draws all readouts share.
    """
    own = metrics.auroc_intervals(train.labels, inside, train.groups, fold=split.fold, seed=seed)
    others = []
    for i, other in enumerate(held_out):
        scores = [found[i] for found in outside]
        others.append(metrics.auroc_intervals(other.labels, scores, other.groups, seed=seed))
    return [[one, *(found[k] for found in others)] for k, one in enumerate(own)]


def _rows(
    where: Where, judged: Judged, C: float | None, sets: Sequence[PromptSet]
) -> Iterator[ScoreRow]:
    """A row for the train set, the first one, and for each held-out set."""
    train = sets[0]
    for prompts, auroc in zip(sets, judged.aurocs, strict=True):
        n_pos = int(prompts.labels.sum())
        yield ScoreRow(
            model=where.model,
            hook_point=where.hook_point,
            position=where.position,
            layer=judged.layer,
            readout=judged.readout,
            train_set=train.name,
            eval_set=prompts.name,
            held_out=prompts is not train,
            n_pos=n_pos,
            n_neg=len(prompts) - n_pos,
            auroc=float(auroc.estimate),
            auroc_lo=float(auroc.lo),
            auroc_hi=float(auroc.hi),
            seed=where.seed,
            C=float("nan") if C is None else C,
        )
