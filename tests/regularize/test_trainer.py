"""Where training ends: at plain fine-tuning's end where it should be that, wherever it is run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DataCollatorForSeq2Seq, GPT2Config, GPT2LMHeadModel, Trainer
from transformers.trainer_utils import set_seed

from probes.models import ChatModel
from regularize import packed
from regularize.critics import Critic, Risks
from regularize.critics.constant import ConstantCritic
from regularize.data import examples
from regularize.defences import Defence, Weights
from regularize.defences.adaptive_kl import AdaptiveKL
from regularize.defences.constant_kl import ConstantKL
from regularize.defences.none import SFT
from tests.conftest import make_tokenizer
from tests.regularize import training
from tests.regularize.training import (
    ORDER,
    OTHER,
    ROWS,
    SAME,
    adapted,
    arguments,
    by_hand,
    distance,
    encoded,
    equal,
    lora,
    run,
    states,
    tiny,
    trained,
    trainer,
)


def naive_training(
    model: torch.nn.Module,
    weights: Sequence[tuple[float, float]],
    *,
    direction: str = "forward",
    **options: Any,
) -> dict[str, Tensor]:
    """The textbook's sum of NLL and KL, by each row's weights."""

    def loss(log_q: Tensor, log_p: Tensor, target: Tensor, row: int) -> Tensor:
        first, second = (log_p, log_q) if direction == "forward" else (log_q, log_p)
        kl = (first.exp() * (first - second)).sum()
        nll = torch.nn.functional.nll_loss(log_q, target, reduction="sum")
        alpha, beta = weights[row]
        return alpha * nll + beta * kl

    return by_hand(model, loss, **options)


def of_paper(beta_min: float = 0.1, beta_max: float = 0.9) -> list[tuple[float, float]]:
    betas = [beta_min + (beta_max - beta_min) * row["risk"] for row in ROWS]
    return [(1 - beta, beta) for beta in betas]


# The paper's algorithm, written as a loop


@pytest.mark.parametrize("reference", ["cached", "adapter-off", "copy"])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_an_adapter_goes_the_textbooks_way(direction: Any, reference: Any, tmp_path: Path) -> None:
    defence = AdaptiveKL(direction=direction)
    ours = run(tmp_path, defence=defence, reference=reference, args=ORDER)
    wanted = naive_training(adapted(), of_paper(), direction=direction)
    assert distance(ours, wanted) < SAME
    assert distance(trained(adapted()), wanted) > OTHER


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_a_whole_model_goes_the_textbooks_way(tied: bool, tmp_path: Path) -> None:
    """With its head, be it the embedding too or not."""

    def model() -> Any:
        found = tiny()
        if tied:
            found.config.tie_word_embeddings = True
            found.lm_head.weight = found.model.embed_tokens.weight
        return found

    def naive(beta_max: float = 0.9) -> dict[str, Tensor]:
        weights = of_paper(beta_max=beta_max)
        return naive_training(model(), weights, lr=0.02, reference=model())

    args, wanted = {**ORDER, "learning_rate": 0.02}, naive()
    kinds: tuple[Any, ...] = ("cached", "copy")
    for kind in kinds:
        ours = run(tmp_path, model=model(), full=True, reference=kind, args=args)
        assert distance(ours, wanted) < SAME
    assert ("lm_head.weight" in wanted) == (not tied)
    assert distance(naive(0.8), wanted) > OTHER


# What it reduces to


@pytest.mark.parametrize("optimizer", ["sgd", "adamw_torch"])
@pytest.mark.parametrize("full", [False, True], ids=["adapter", "full"])
def test_without_defence_it_is_transformers_own_fine_tuning(
    full: bool, optimizer: str, tmp_path: Path
) -> None:
    options = {
        "optim": optimizer,
        "gradient_accumulation_steps": 2,
        "max_steps": 8,  # past an epoch's last, incomplete step
        "learning_rate": 0.02 if optimizer == "sgd" else 1e-3,
        "max_grad_norm": 1.0,
    }
    tokenizer = make_tokenizer()
    tokenizer.pad_token = "</s>"
    rows = [{"input_ids": one.input_ids, "labels": one.labels} for one in encoded()]
    theirs = Trainer(
        model=tiny() if full else adapted(),
        args=arguments(tmp_path / "plain", **options),
        train_dataset=rows,
        eval_dataset=rows[:5],
        data_collator=DataCollatorForSeq2Seq(tokenizer, padding=True),
    )
    wanted_eval = [theirs.evaluate()["eval_loss"]]
    theirs.train()
    wanted_eval.append(theirs.evaluate()["eval_loss"])

    for i, defence in enumerate((SFT(), AdaptiveKL(beta_min=0.0))):
        ours = trainer(
            tmp_path / str(i),
            defence=defence,
            critic=ConstantCritic(0.0),
            full=full,
            args=options,
            eval_dataset=ROWS[:5],
        )
        found_eval = [ours.evaluate()["eval_loss"]]
        ours.train()
        found_eval.append(ours.evaluate()["eval_loss"])
        assert distance(trained(ours.model), trained(theirs.model)) < SAME
        assert losses(ours) == pytest.approx(losses(theirs), abs=SAME)
        assert found_eval == pytest.approx(wanted_eval, abs=SAME)

    other = run(tmp_path / "other", full=full, args=options)  # positive control
    assert distance(other, trained(theirs.model)) > OTHER


def losses(one: Trainer, name: str = "loss") -> list[float]:
    return [entry[name] for entry in one.state.log_history if name in entry]


def test_a_constant_risk_is_constant_kl(tmp_path: Path) -> None:
    constant = run(tmp_path, defence=ConstantKL(0.34))
    assert distance(run(tmp_path, critic=ConstantCritic(0.3)), constant) < SAME
    assert distance(run(tmp_path, critic=ConstantCritic(0.2)), constant) > OTHER


def test_in_a_batch_of_one_the_batchs_risk_is_the_examples(tmp_path: Path) -> None:
    options = {"args": {"per_device_train_batch_size": 1, "max_steps": 12}}
    by_batch, by_example = (
        run(tmp_path, defence=AdaptiveKL(granularity=g), **options) for g in ("batch", "example")
    )
    assert distance(by_batch, by_example) < SAME
    by_batch, by_example = (
        run(tmp_path, defence=AdaptiveKL(granularity=g)) for g in ("batch", "example")
    )
    assert distance(by_batch, by_example) > OTHER


# The risk of a step


class Spy(AdaptiveKL):
    """Notes the s that it is asked for."""

    def weights(self, s: Tensor) -> Weights:
        SEEN.append(s.tolist())
        return super().weights(s)


SEEN: list[list[float]] = []


@pytest.fixture(autouse=True)
def _nothing_seen() -> None:
    SEEN.clear()


def test_the_steps_risk_is_its_mean_and_smoothed_over_steps(tmp_path: Path) -> None:
    """s~_1 = s_1, s~_t = .9 s~_(t-1) + .1 s_t; a step is all of its micro-batches."""
    risk = [row["risk"] for row in ROWS]
    s_1, s_2, s_3 = (sum(risk[4 * t : 4 * t + 4]) / 4 for t in range(3))
    smoothed = [s_1, 0.9 * s_1 + 0.1 * s_2, 0.81 * s_1 + 0.09 * s_2 + 0.1 * s_3]
    assert abs(smoothed[2] - s_3) > 0.05
    args = {**ORDER, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    for smoothing, wanted in ((0.9, smoothed), (0.0, [s_1, s_2, s_3])):
        SEEN.clear()
        defence = Spy(granularity="batch", smoothing=smoothing)
        trainer(tmp_path, defence=defence, args={**args, "max_steps": 3}).train()
        assert len(SEEN) == 6
        for seen, s in zip(SEEN, [s for s in wanted for _ in range(2)], strict=True):
            assert seen == pytest.approx([s, s], abs=1e-6)


def test_anchors_neither_have_the_steps_risk_nor_change_it(tmp_path: Path) -> None:
    """A step of anchors alone leaves the smoothed risk as it was."""
    rows = [{**row, "risk": 0.25} for row in ROWS[:4]]
    anchors = examples(ROWS[4:8])
    one = trainer(
        tmp_path,
        rows=rows,
        anchors=anchors,
        defence=Spy(granularity="batch", smoothing=0.5),
        args={**ORDER, "max_steps": 3},
    )
    one.train()
    # Rows, anchors, rows.
    assert SEEN[0] == SEEN[2] == [0.25] * 4
    assert losses(one, "beta") == pytest.approx([0.3, 1.0, 0.3])
    mixed = trainer(
        tmp_path,
        rows=rows,
        anchors=anchors,
        defence=AdaptiveKL(granularity="batch"),
        args={**ORDER, "per_device_train_batch_size": 8, "max_steps": 1},
    )
    mixed.train()
    assert losses(mixed, "beta") == [pytest.approx((0.3 + 1.0) / 2)]


def test_an_anchor_is_held_to_the_reference_and_not_learnt(tmp_path: Path) -> None:
    """Whatever the defence: at the reference its gradient is zero."""
    for defence in (SFT(), AdaptiveKL()):
        one = trainer(
            tmp_path,
            rows=ROWS[:4],
            anchors=examples(ROWS[4:8]),
            defence=defence,
            args={**ORDER, "max_steps": 2},
        )
        one.train()
        with_answer, alone = one.state.log_history[:2]
        assert with_answer["grad_norm"] > 1e-3 and alone["kl"] > 1e-5
    swapped = trainer(
        tmp_path,
        rows=ROWS[4:8],
        anchors=examples(ROWS[4:8]),
        defence=SFT(),
        args={"max_steps": 1, "train_sampling_strategy": "sequential"},
    )
    swapped.train_dataset.reverse()
    swapped.train()
    assert swapped.state.log_history[0]["grad_norm"] < 1e-5
    assert swapped.state.log_history[0]["nll"] > 1


# One trajectory


@pytest.mark.parametrize(
    "defence",
    [AdaptiveKL(), AdaptiveKL(granularity="batch", smoothing=0.5), AdaptiveKL(direction="reverse")],
    ids=["example", "batch", "reverse"],
)
def test_accumulation_changes_nothing(defence: Defence, tmp_path: Path) -> None:
    one, two, four = (
        trainer(
            tmp_path,
            defence=defence,
            args={"per_device_train_batch_size": 4 // n, "gradient_accumulation_steps": n},
        )
        for n in (1, 2, 4)
    )
    for each in (one, two, four):
        each.train()
    for other in (two, four):
        assert distance(trained(other.model), trained(one.model)) < SAME
        for name in ("loss", "nll", "kl", "risk", "beta", "grad_norm"):
            assert losses(other, name) == pytest.approx(losses(one, name), rel=1e-4, abs=1e-5)
    control = run(tmp_path, defence=type(defence)(**{**vars(defence), "beta_max": 0.8}))
    assert distance(control, trained(one.model)) > OTHER


def with_places() -> GPT2LMHeadModel:
    """A model that is told where a token stands, not only how far it is from others."""
    config = GPT2Config(
        vocab_size=288, n_embd=32, n_layer=2, n_head=4, n_positions=256, initializer_range=0.2,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GPT2LMHeadModel(config)


@pytest.mark.parametrize("model", [tiny, with_places])
def test_the_side_of_the_padding_changes_nothing(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "limit", lambda *_: 0)  # a packed row has no padding
    options: dict[str, Any] = {"peft_config": lora(target_modules=["q_proj", "up_proj", "c_attn"])}
    right = run(tmp_path, model=model(), **options)
    for kind in ("cached", "adapter-off", "copy"):
        left = run(tmp_path, model=model(), padding_side="left", reference=kind, **options)
        assert distance(left, right) < SAME
        assert not equal(left, right), "they did not run alike after all"


@pytest.mark.parametrize("family", ["llama", "phi3", "qwen2"])
def test_the_three_references_are_one(family: str, tmp_path: Path) -> None:
    cached, off, copied = (
        run(tmp_path, model=tiny(family), reference=kind, peft_config=lora(lora_dropout=0.0))
        for kind in ("cached", "adapter-off", "copy")
    )
    assert distance(off, cached) < SAME and distance(copied, cached) < SAME
    other = run(tmp_path, model=tiny(family), defence=AdaptiveKL(beta_max=0.8))
    assert distance(other, cached) > OTHER


def test_the_three_references_are_one_for_an_adapter_that_was_trained_before(
    tmp_path: Path,
) -> None:
    """The reference is the model with its adapter switched off, however it is kept."""

    def model() -> Any:
        found = adapted()
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(5)
            for name, parameter in found.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.02)
        return found

    kinds: tuple[Any, ...] = ("cached", "adapter-off", "copy")
    runs = [trainer(tmp_path, model=model(), full=True, reference=kind) for kind in kinds]
    for one in runs:
        one.train()
        assert losses(one, "kl")[0] > 1e-4
        assert distance(trained(one.model), trained(runs[0].model)) < SAME
    assert losses(runs[1], "kl") == pytest.approx(losses(runs[0], "kl"), rel=1e-4)


def test_dropout_is_the_policys_alone(tmp_path: Path) -> None:
    """At the first step the adapter adds nothing yet: with dropout in it the KL is zero still."""
    kinds: tuple[Any, ...] = ("cached", "adapter-off", "copy")
    in_the_adapter = [
        trainer(tmp_path, peft_config=lora(lora_dropout=0.5), reference=kind) for kind in kinds
    ]
    in_the_model = [trainer(tmp_path, model=tiny(dropout=0.2), reference=kind) for kind in kinds]
    for one in [*in_the_adapter, *in_the_model]:
        set_seed(0)
        one.train()
    for one in in_the_adapter:
        assert abs(losses(one, "kl")[0]) < 1e-6 < losses(one, "kl")[-1]
    for one in in_the_model:
        assert losses(one, "kl")[0] > 1e-2
        # Of a reference with dropout, the KL would be another.
        assert losses(one, "kl") == pytest.approx(losses(in_the_model[0], "kl"), rel=1e-3)


# What training touches


@pytest.mark.parametrize("reference", ["cached", "adapter-off", "copy"])
def test_it_starts_at_the_reference_and_only_the_adapter_moves(
    reference: Any, tmp_path: Path
) -> None:
    model = tiny()
    before = states(model)
    one = trainer(tmp_path, model=model, reference=reference)
    start = trained(one.model)
    one.train()
    kl = losses(one, "kl")
    assert abs(kl[0]) < 1e-6 and min(kl[1:]) > 1e-3
    end = trained(one.model)
    assert all("lora_" in name for name in end)
    assert all(not torch.equal(end[name], start[name]) for name in end), "one did not move"
    with one.model.disable_adapter():
        after = states(one.model.unload())
    assert equal(after, before)
    if reference == "copy":
        assert equal(states(one.reference._model), before)


@pytest.mark.parametrize("case", ["autocast", "bf16"])
def test_low_precision_starts_at_the_reference_too(case: str, tmp_path: Path) -> None:
    wanted = trainer(tmp_path)
    wanted.train()
    for kind in ("cached", "adapter-off", "copy"):
        model = tiny().to(torch.bfloat16) if case == "bf16" else tiny()
        one = trainer(tmp_path, model=model, reference=kind, args={"bf16": case == "autocast"})
        one.train()
        assert abs(losses(one, "kl")[0]) < 1e-3
        for name in ("loss", "nll", "kl"):
            first = losses(wanted, name)[:4]  # later, rounding has grown
            assert losses(one, name)[:4] == pytest.approx(first, rel=0.05, abs=0.02)


def test_risks_are_assessed_where_the_model_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy or a head that was kept elsewhere would not go with the policy's tensors."""

    class Elsewhere(training.TrainingArguments):
        device = property(lambda self: torch.device("meta"))

    class Asked(Exception):
        pass

    class Where(Critic):
        def assess(self, examples: Any, chat: ChatModel) -> Risks:
            raise Asked(chat.model.device.type)

    monkeypatch.setattr(training, "TrainingArguments", Elsewhere)
    with pytest.raises(Asked, match="meta"):
        trainer(tmp_path, critic=Where())
    spread = tiny()
    spread.hf_device_map = {"": "cpu"}
    with pytest.raises(Asked, match="cpu"):
        trainer(tmp_path, model=spread, critic=Where())


def test_gradient_checkpointing_changes_nothing(tmp_path: Path) -> None:
    plain = run(tmp_path)
    kwargs = {"gradient_checkpointing_kwargs": {"use_reentrant": False}}
    for kind in ("cached", "adapter-off"):
        args = {"gradient_checkpointing": True, **kwargs}
        assert distance(run(tmp_path, reference=kind, args=args), plain) < SAME


def test_evaluation_between_steps_changes_nothing(tmp_path: Path) -> None:
    args = {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 3}
    defence = AdaptiveKL(granularity="batch", smoothing=0.5)
    plain, evaluated = (
        trainer(tmp_path, defence=defence),
        trainer(tmp_path, defence=defence, args=args, eval_dataset=ROWS[:5]),
    )
    plain.train()
    evaluated.train()
    assert distance(trained(evaluated.model), trained(plain.model)) == 0
    for name in ("loss", "kl", "beta"):
        assert losses(evaluated, name) == losses(plain, name)
    assert len(losses(evaluated, "eval_loss")) == 6
