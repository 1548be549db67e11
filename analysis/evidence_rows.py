"""Rows of the tables that say how far a sweep's numbers can be believed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PromptRow:
    """One prompt of a set that was swept."""

    prompt_set: str
    """Name of the set."""
    id: str
    """A hash of its text, as in `RiskRow`."""
    label: int
    """1 = harmful, 0 = harmless."""
    group: str
    """Rows of one group never straddle train and test."""
    source: str
    """Where the row is from."""
    text: str
    """The last user turn."""


@dataclass(frozen=True, slots=True)
class MarginRow:
    """How far one readout is above the best lexical floor, on the same prompts."""

    model: str
    """The model as named on the command line."""
    hook_point: str
    """As in `ScoreRow`."""
    position: str
    """As in `ScoreRow`."""
    layer: int
    """Block index from 0; -1 where the readout is not of a single block."""
    readout: str
    """As in `ScoreRow`."""
    train_set: str
    """The prompt set that probe and floor were fitted on."""
    eval_set: str
    """The prompt set that they were scored on."""
    held_out: bool
    """False for the train set itself, scored on folds that were not trained on."""
    floor: str
    """The floor of highest AUROC on that very set: tfidf-word, tfidf-char or length."""
    margin: float
    """AUROC of the readout less that of the floor, -1 to 1; NaN where it is undefined."""
    margin_lo: float
    """Lower end of the paired 95 % interval: both are scored on the same draws of groups."""
    margin_hi: float
    """Upper end of it."""
    seed: int
    """Seed of folds, samples and bootstrap."""


@dataclass(frozen=True, slots=True)
class OperatingRow:
    """What happens on one set at a threshold that was frozen before on other prompts."""

    model: str
    """The model as named on the command line."""
    readout: str
    """As in `ScoreRow`."""
    layer: int
    """Block index from 0; -1 where the readout is not of a single block."""
    train_set: str
    """The prompt set whose out-of-fold scores set the threshold."""
    eval_set: str
    """The prompt set that is flagged."""
    held_out: bool
    """False for the train set itself, whose realised rate is no test of the threshold."""
    fpr: float
    """False-positive rate that was asked for, 0 to 1."""
    threshold: float
    """Log-odds above which a prompt is flagged; NaN where the harmless prompts are too few."""
    n_calibration: int
    """Harmless prompts that set the threshold."""
    n_pos: int
    """Harmful prompts of the evaluation set."""
    n_neg: int
    """Harmless prompts of the evaluation set."""
    tpr: float
    """Share of the harmful prompts that are flagged; NaN where it is undefined."""
    tpr_lo: float
    """Lower end of the exact (Clopper-Pearson) 95 % interval."""
    tpr_hi: float
    """Upper end of it."""
    realised_fpr: float
    """Share of the harmless prompts that are flagged; NaN where it is undefined."""
    realised_fpr_lo: float
    """Lower end of the exact (Clopper-Pearson) 95 % interval."""
    realised_fpr_hi: float
    """Upper end of it."""


@dataclass(frozen=True, slots=True)
class LeakRow:
    """Two prompts that are the same, or nearly."""

    train_set: str
    """A prompt set that probes are fitted on."""
    eval_set: str
    """The set of the other prompt; the train set itself for a pair inside of it."""
    kind: str
    """exact, normalised (the same letters and digits), or near (many shared n-grams)."""
    train_id: str
    """The prompt of the train set."""
    eval_id: str
    """The other one."""
    similarity: float
    """Jaccard similarity of their character n-grams, 0 to 1."""
    same_label: bool
    """Whether both are harmful or both harmless."""
    same_group: bool
    """Whether both are of one group; only within a set does that keep them apart from a fold."""
    dropped: bool
    """Whether the evaluation set is scored without it."""


@dataclass(frozen=True, slots=True)
class LayerRow:
    """One layer as a candidate for the probe."""

    model: str
    """The model as named on the command line."""
    hook_point: str
    """As in `ScoreRow`."""
    position: str
    """As in `ScoreRow`."""
    train_set: str
    """The prompt set that it is chosen on."""
    layer: int
    """Block index from 0."""
    auroc: float
    """In-distribution AUROC."""
    error: float
    """Standard error of its difference from the best layer's, over draws of groups."""
    chosen: float
    """Share of the draws in which this layer is the best."""
    within_one_error: bool
    """Whether it is less than one standard error below the best layer."""
    best: bool
    """Whether it is the layer that is chosen."""
    seed: int
    """Seed of folds and bootstrap."""


@dataclass(frozen=True, slots=True)
class NestedRow:
    """What the choice of layer and C is worth on prompts that had no say in it."""

    model: str
    """The model as named on the command line."""
    hook_point: str
    """As in `ScoreRow`."""
    position: str
    """As in `ScoreRow`."""
    train_set: str
    """The prompt set."""
    selected: float
    """In-distribution AUROC of the layer that has the highest."""
    selected_lo: float
    """Lower end of its 95 % interval."""
    selected_hi: float
    """Upper end of it."""
    nested: float
    """AUROC of the procedure: layer and C chosen on the inner folds, scored on the outer ones."""
    nested_lo: float
    """Lower end of its 95 % interval."""
    nested_hi: float
    """Upper end of it."""
    optimism: float
    """selected - nested: what looking at the scores before choosing has added."""
    layers: str
    """The layer chosen in each outer fold, with spaces between."""
    seed: int
    """Seed of folds and bootstrap."""


@dataclass(frozen=True, slots=True)
class ControlRow:
    """What the same procedure gives where there is nothing to be found."""

    model: str
    """The model as named on the command line."""
    hook_point: str
    """As in `ScoreRow`."""
    position: str
    """As in `ScoreRow`."""
    train_set: str
    """The prompt set."""
    layer: int
    """Block index from 0; -1 for the whole procedure, in which the layer is chosen too."""
    control: str
    """permuted-labels (by group, through the choice of layer and C) or random-direction."""
    draws: int
    """Permutations, or directions."""
    auroc: float
    """Mean over the draws."""
    auroc_lo: float
    """2.5th percentile over the draws."""
    auroc_hi: float
    """97.5th percentile over the draws."""
    observed: float
    """AUROC with the labels as they are, or of the probe's own direction."""
    p_value: float
    """(1 + draws of at least the observed AUROC) / (1 + draws)."""
    seed: int
    """Seed of the draws."""


@dataclass(frozen=True, slots=True)
class CalibrationRow:
    """How far the probe's probabilities are what they say, on one set."""

    model: str
    """The model as named on the command line."""
    readout: str
    """As in `ScoreRow`."""
    layer: int
    """Block index from 0; -1 where the readout is not of a single block."""
    train_set: str
    """The prompt set that the probe was fitted on."""
    eval_set: str
    """The prompt set that it was scored on."""
    held_out: bool
    """False for the train set itself, scored on folds that were not trained on."""
    calibration: str
    """none (the logistic probe's own probability), platt or isotonic."""
    frozen: bool
    """Whether the frozen probe gives this one."""
    n: int
    """Prompts."""
    ece: float
    """Expected calibration error over ten bins of equal mass, 0 to 1."""
    brier: float
    """Mean squared error of the probability, 0 to 1."""
    log_loss: float
    """Mean negative log-likelihood of the labels, nats."""


@dataclass(frozen=True, slots=True)
class ReliabilityRow:
    """One bin of a reliability diagram."""

    model: str
    """The model as named on the command line."""
    readout: str
    """As in `ScoreRow`."""
    layer: int
    """Block index from 0; -1 where the readout is not of a single block."""
    train_set: str
    """The prompt set that the probe was fitted on."""
    eval_set: str
    """The prompt set that it was scored on."""
    held_out: bool
    """False for the train set itself, scored on folds that were not trained on."""
    calibration: str
    """As in `CalibrationRow`."""
    bin: int
    """From 0, by rising probability; bins of equal mass."""
    n: int
    """Prompts in the bin."""
    probability: float
    """Mean probability of harm."""
    share: float
    """Share of harmful prompts."""
    share_lo: float
    """Lower end of the exact (Clopper-Pearson) 95 % interval."""
    share_hi: float
    """Upper end of it."""


@dataclass(frozen=True, slots=True)
class CosineRow:
    """How alike the probes of two positions are."""

    model: str
    """The model as named on the command line."""
    hook_point: str
    """As in `ScoreRow`."""
    train_set: str
    """The prompt set that both were fitted on."""
    layer: int
    """Block index from 0."""
    position: str
    """As in `ScoreRow`."""
    other: str
    """Another position."""
    cosine: float
    """Of the angle between their directions, -1 to 1."""


@dataclass(frozen=True, slots=True)
class CausalRow:
    """What a model does on held-out prompts while a direction of its residual stream is changed."""

    model: str
    """The model as named on the command line."""
    backend: str
    """What ran it: transformers, transformer-lens or nnsight."""
    train_set: str
    """The prompt set that the directions are from."""
    eval_set: str
    """The prompts."""
    label: int
    """Of these prompts: 1 = harmful, 0 = harmless."""
    layer: int
    """Block whose output is changed; -1 where nothing is changed."""
    intervention: str
    """none, ablate (the direction is projected out) or add."""
    target: str
    """The direction that is tested: probe, or class-mean (the difference of the class means); none
    where nothing is changed."""
    direction: str
    """The target itself, or random: a control for it."""
    random: str
    """What random directions are drawn from: covariance (of activations of one class) or isotropic.
    """
    draw: int
    """Number of the random direction, from 0; 0 for the target."""
    strength: float
    """Of what is added for the target: by how many standard deviations, over the train set, it
    raises the probe's logit. 0 where nothing is added."""
    tokens: str
    """Where: all (tokens of the prompt and of the answer), prompt (of the prompt alone), or none.
    """
    norm: float
    """Length of what is added; a random direction's is its target's."""
    cosine: float
    """Of the angle between the direction and the probe's; NaN where nothing is changed."""
    metric: str
    """refusal: share of the prompts refused; incoherent: share of the answers that say nothing."""
    value: float
    """The share, 0 to 1."""
    lo: float
    """Lower end of the 95 % Wilson interval over the prompts."""
    hi: float
    """Upper end of it."""
    change: float
    """The share less that without a change, paired by prompt."""
    change_lo: float
    """Lower end of its 95 % interval over draws of groups."""
    change_hi: float
    """Upper end of it."""
    n: int
    """Prompts."""
    seed: int
    """Seed of prompts, directions and bootstrap."""


@dataclass(frozen=True, slots=True)
class DriftRow:
    """AUROC of the frozen probe on a model while it is trained, on prompts set aside for it."""

    model: str
    """The model as named on the command line."""
    defence: str
    """As in `EvaluationRow`."""
    critic: str
    """As in `EvaluationRow`."""
    attack: str
    """As in `EvaluationRow`."""
    harmful_share: float
    """As in `EvaluationRow`."""
    learning_rate: float
    """As in `StepRow`."""
    seed: int
    """As in `EvaluationRow`."""
    step: int
    """Optimizer steps so far; 0 is the reference."""
    auroc: float
    """AUROC of the frozen probe on the model being trained."""
    auroc_lo: float
    """Lower end of the 95 % interval."""
    auroc_hi: float
    """Upper end of it."""
    tpr: float
    """Share of the harmful prompts above the frozen threshold; NaN where there is none."""
    fpr: float
    """Share of the harmless prompts above it."""
    n: int
    """Prompts."""


TABLES: dict[str, type] = {
    "prompts": PromptRow,
    "margins": MarginRow,
    "operating": OperatingRow,
    "leaks": LeakRow,
    "layers": LayerRow,
    "nested": NestedRow,
    "controls": ControlRow,
    "calibration": CalibrationRow,
    "reliability": ReliabilityRow,
    "cosines": CosineRow,
    "causal": CausalRow,
    "drift": DriftRow,
}
"""File stem -> row."""
