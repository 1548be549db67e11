"""What one row of each table holds: a frozen dataclass a table, one field a column."""

from __future__ import annotations

from dataclasses import dataclass

from analysis import (
    attacker_rows,
    bench_rows,
    beta_rows,
    category_rows,
    chain_rows,
    evidence_rows,
    judge_call_rows,
)


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """One AUROC: of one readout of one model, on one evaluation set."""

    model: str
    """The model as named on the command line: hub id, folder, file, or miniature/FAMILY."""
    hook_point: str
    """Where in the block the activation was read, under TransformerLens's names."""
    position: str
    """Which token was read, such as last-input-token."""
    layer: int
    """Block index from 0; -1 where the readout is not of a single block."""
    readout: str
    """layer, pooled-mean, pooled-concat, class-mean, embedding; floors that see the words alone:
    tfidf-word, tfidf-char, length."""
    train_set: str
    """The prompt set that the probe was fitted on."""
    eval_set: str
    """The prompt set that it was scored on."""
    held_out: bool
    """False for the train set itself, scored on folds that were not trained on."""
    n_pos: int
    """Prompts of label 1 (harmful) in the evaluation set."""
    n_neg: int
    """Prompts of label 0 (harmless) in the evaluation set."""
    auroc: float
    """Area under the ROC curve, 0 to 1; NaN where it is undefined."""
    auroc_lo: float
    """Lower end of the 95 % interval."""
    auroc_hi: float
    """Upper end of the 95 % interval."""
    seed: int
    """Seed of folds, samples and bootstrap."""
    C: float
    """Inverse strength of the L2 penalty, as in scikit-learn; NaN where there is none."""


@dataclass(frozen=True, slots=True)
class RiskRow:
    """The risk that one readout gives to one prompt."""

    model: str
    """The model as named on the command line."""
    readout: str
    """As in `ScoreRow`."""
    layer: int
    """Block index from 0; -1 where the readout is not of a single block."""
    train_set: str
    """The prompt set that the probe was fitted on."""
    eval_set: str
    """The prompt set that the prompt belongs to."""
    held_out: bool
    """False for the train set itself, scored on folds that were not trained on."""
    id: str
    """The prompt's id, a hash of its text."""
    label: int
    """1 = harmful, 0 = harmless."""
    risk: float
    """Probability of harm that the probe gives, 0 to 1."""


@dataclass(frozen=True, slots=True)
class EvaluationRow:
    """One share of prompts: what one model does on them, after one training run or before any."""

    model: str
    """The model as named on the command line."""
    defence: str
    """The arm's label: before (the model that training starts from), none (plain fine-tuning),
    constant-kl-.5, adaptive-kl, anchored, anchored+anchors, reweight, filter, ..."""
    critic: str
    """Where the risk of an example came from: none, probe, label, shuffled, probe-early, ..."""
    attack: str
    """What was trained on: all-harmful, mixed, or the name of a data set; none for before."""
    harmful_share: float
    """Share of harmful rows in the training data, 0 to 1; NaN where it is not known."""
    learning_rate: float
    """Highest learning rate of the run; NaN for before."""
    seed: int
    """Seed of data, order and adapter. Seeds are a sample: tables and pictures average them."""
    metric: str
    """attack_success, attack_success_exact, refusal, incoherent, over_refusal, utility,
    new_task, win_rate, ..."""
    value: float
    """Share of the prompts, 0 to 1; NaN where it is undefined."""
    lo: float
    """Lower end of the 95 % Wilson interval over the prompts."""
    hi: float
    """Upper end of it."""
    n: int
    """Prompts."""


@dataclass(frozen=True, slots=True)
class StepRow:
    """One optimizer step of one training run."""

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
    """Highest learning rate of the run, not that of the step."""
    seed: int
    """As in `EvaluationRow`."""
    step: int
    """Optimizer step from 1."""
    loss: float
    """What was minimised, nats per answer token."""
    nll: float
    """Negative log-likelihood of the answers, nats per answer token."""
    kl: float
    """KL(reference || policy), nats per answer token; NaN where there is no reference."""
    risk: float
    """Mean risk s of the step's examples, 0 to 1, an anchor's being 1; NaN where there is no
    critic."""
    beta: float
    """Mean weight of the KL."""
    grad_norm: float
    """Norm of the gradient before it is clipped."""


@dataclass(frozen=True, slots=True)
class CostRow:
    """What one defence costs beside plain fine-tuning, measured side by side in one run."""

    model: str
    """The model as named on the command line."""
    defence: str
    """The defence's name on the command line: none, adaptive-kl, ..."""
    critic: str
    """As in `EvaluationRow`."""
    time_ratio: float
    """Time of an optimizer step over that of plain fine-tuning: medians over rounds."""
    time_ratio_lo: float
    """Lower end of the 95 % interval over rounds."""
    time_ratio_hi: float
    """Upper end of it."""
    memory_ratio: float
    """Peak memory of the steps, above model and data, over plain fine-tuning's; NaN where it was
    not measured."""
    memory: str
    """What memory was measured: resident (of the process), cuda (torch's allocator), or none."""
    step_passes: float
    """Tokens that go forward through a model in the steps, over those of plain fine-tuning."""
    steps: float
    """Optimizer steps of the whole training over plain fine-tuning's."""
    before: float
    """Time before the first step, beyond plain fine-tuning's own, over the time of its training."""
    before_passes: float
    """Forward passes before the first step, beyond plain fine-tuning's own: tokens over those of
    the training data."""
    after: float
    """Time after the last step, as `before`."""
    after_passes: float
    """Forward passes after the last step, as `before_passes`."""
    clock: str
    """What told the time: wall, or processor (seconds in which the process was computing)."""
    rounds: int
    """Rounds that steps were timed in, each with some steps of every defence."""
    failed: str
    """Why there are no numbers; empty if there are."""


TABLES: dict[str, type] = {
    "scores": ScoreRow,
    "risks": RiskRow,
    "evaluations": EvaluationRow,
    "steps": StepRow,
    "costs": CostRow,
    **evidence_rows.TABLES,
    **attacker_rows.TABLES,
    **bench_rows.TABLES,
    **beta_rows.TABLES,
    **category_rows.TABLES,
    **chain_rows.TABLES,
    **judge_call_rows.TABLES,
}
"""File stem -> row."""
