"""The canary: what it reads is the model in training, and reading it changes nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers.trainer_utils import set_seed

from probes.capture import capture
from probes.errors import InputError
from probes.frozen import FrozenProbe
from probes.prompts import Prompt, PromptSet
from probes.provenance import ProbeConfig
from regularize import drift
from regularize.measures import Arm
from regularize.model import base_of
from tests.conftest import make_tokenizer
from tests.regularize.training import run, tiny, trained, trainer

PROMPTS = PromptSet(
    "canary",
    tuple(
        Prompt.of(f"{word} {i} times", label=i % 2, source="s")
        for i, word in enumerate(["open", "close", "turn", "hold"] * 4)
    ),
)


def probe_of(model: Any) -> FrozenProbe:
    """One whose direction is that of the classes' means on the model as it is."""
    d_model, n_layers = model.config.hidden_size, model.config.num_hidden_layers
    acts = capture(model, make_tokenizer(), PROMPTS.messages, layers=(1,))[:, 0].double()
    labels = torch.from_numpy(PROMPTS.labels)
    weight = acts[labels == 1].mean(0) - acts[labels == 0].mean(0)
    middle = (acts @ weight).median()
    found = FrozenProbe(
        ProbeConfig(
            base_model="tiny", revision=None, weights="", template="", hook_point="resid_post",
            position="last-input-token", max_length=None, n_layers=n_layers, d_model=d_model,
            readout="layer", layers=(1,), C=1.0, train_set="s", train_hash="", auroc=None,
            threshold_fpr=0.1, threshold=0.0, realised_fpr=0.1,
        )
    )  # fmt: skip
    found.weight.copy_(weight[None])
    found.bias.copy_(-middle)
    return found


def watched(tmp_path: Any, **options: Any) -> tuple[Any, drift.Canary]:
    made = trainer(tmp_path, **options)
    canary = drift.Canary(probe_of(base_of(made.model)), PROMPTS, make_tokenizer(), every=2)
    made.add_callback(canary)
    return made, canary


def test_it_looks_at_the_reference_first_and_then_at_what_is_trained(tmp_path: Any) -> None:
    made, canary = watched(tmp_path)
    before = capture(base_of(made.model), make_tokenizer(), PROMPTS.messages, layers=(1,))
    made.train()
    rows = drift.rows(made.state.log_history, Arm("tiny", "none", seed=3))
    assert [row.step for row in rows] == [0, 2, 4, 6]
    assert {(row.model, row.defence, row.seed, row.n) for row in rows} == {("tiny", "none", 3, 16)}
    after = capture(base_of(made.model), make_tokenizer(), PROMPTS.messages, layers=(1,))
    assert (after - before).abs().max() > 1e-3  # it did move
    for acts, row in ((before, rows[0]), (after, rows[-1])):
        logits = canary.probe(acts).numpy().astype(np.float64)
        assert drift.looked(canary.probe, PROMPTS, logits)["auroc"] == pytest.approx(row.auroc)
        assert row.tpr == pytest.approx((logits[PROMPTS.labels == 1] > 0).mean())
        assert row.fpr == pytest.approx((logits[PROMPTS.labels == 0] > 0).mean())


def test_training_is_the_same_with_and_without_it(tmp_path: Any) -> None:
    model = tiny(dropout=0.2)
    set_seed(0)
    made, _ = watched(tmp_path / "with", model=model)
    made.train()
    alone = run(tmp_path / "without", model=tiny(dropout=0.2))
    for name, weight in alone.items():
        torch.testing.assert_close(trained(made.model)[name], weight, rtol=0, atol=0)


def test_what_is_said_names_the_worst_look() -> None:
    entry = {"auroc_lo": 0.5, "auroc_hi": 1.0, "tpr": 1.0, "fpr": 0.0, "n": 16}
    log = [
        {drift.ENTRY: {"auroc": auroc, **entry}, "step": step}
        for step, auroc in ((0, 1.0), (2, 0.6), (4, 0.9))
    ]
    rows = drift.rows([{"loss": 1.0, "step": 1}, *log], Arm("m"))
    assert "0.600 [0.500, 1.000] at worst (step 2)" in drift.said(rows)
    assert "worst" not in drift.said(rows[:2])


def test_a_canary_of_one_class_is_refused() -> None:
    one = replace(PROMPTS, prompts=PROMPTS.prompts[::2])
    with pytest.raises(InputError, match="one class only"):
        drift.Canary(None, one, make_tokenizer(), every=1)  # type: ignore[arg-type]


def test_a_run_that_is_resumed_goes_on_with_what_was_found(tmp_path: Any) -> None:
    args = {"save_strategy": "steps", "save_steps": 3}
    whole, _ = watched(tmp_path / "whole", args=args)
    whole.train()
    again, _ = watched(tmp_path / "again", args=args)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "out" / "checkpoint-3"))
    first, second = (drift.rows(one.state.log_history, Arm("tiny")) for one in (whole, again))
    assert [row.step for row in second] == [0, 2, 4, 6]
    for one, other in zip(first, second, strict=True):
        assert other.auroc == pytest.approx(one.auroc, abs=1e-6)
