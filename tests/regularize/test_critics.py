"""Critics give the risks that they promise, and say plainly where they cannot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from probes.capture import capture
from probes.errors import InputError
from probes.frozen import FrozenProbe
from probes.frozen_categories import CategoriesConfig, FrozenCategories
from probes.hooks import LAST, POSITIONS, Position
from probes.models import ChatModel, template_hash, weights_fingerprint
from probes.provenance import ProbeConfig
from regularize.critics import Critic
from regularize.critics.categories import CategoriesCritic
from regularize.critics.column import ColumnCritic
from regularize.critics.constant import ConstantCritic
from regularize.critics.ensemble import EnsembleCritic
from regularize.critics.label import LabelCritic
from regularize.critics.probe import ProbeCritic
from regularize.critics.shuffled import ShuffledCritic
from regularize.data import examples
from tests.conftest import make_model, make_tokenizer

ROWS = examples(
    [
        {
            "messages": [
                {"role": "user", "content": f"open the {i * 7919 % 101}. box"},
                {"role": "assistant", "content": "Sure" if i % 2 else "No"},
            ],
            "label": i % 2,
            "risk": i / 20,
        }
        for i in range(20)
    ]
)
PROMPTS = [list(one.prompt) for one in ROWS]


@pytest.fixture(scope="module")
def chat() -> ChatModel:
    return ChatModel("tiny/llama", None, make_model("llama"), make_tokenizer())


Freeze = Callable[..., Path]


@pytest.fixture
def freeze(chat: ChatModel, tmp_path: Path) -> Freeze:
    """`freeze(threshold=..., middle=...)`: the folder of a probe of random weights.

    Half of the rows' logits lie above `middle`.
    """

    def make(threshold: float | None = 0.0, middle: float = 0.0, position: Position = LAST) -> Path:
        probe = FrozenProbe(
            ProbeConfig(
                base_model=chat.name,
                revision=None,
                weights=weights_fingerprint(chat.model),
                template=template_hash(chat.tokenizer),
                hook_point="resid_post",
                position=position,
                max_length=None,
                n_layers=3,
                d_model=32,
                readout="layer",
                layers=(1,),
                C=1.0,
                train_set="boxes",
                train_hash="0",
                auroc=None,
                threshold_fpr=0.01,
                threshold=threshold,
                realised_fpr=None,
            )
        )
        generator = torch.Generator().manual_seed(0)
        probe.weight.copy_(0.2 * torch.randn(1, 32, generator=generator))
        logits = probe.logits(chat.model, chat.tokenizer, PROMPTS)
        probe.bias.fill_(middle - logits.quantile(0.5))
        probe.save_pretrained(tmp_path / "probe")
        return tmp_path / "probe"

    return make


def test_the_probes_risk_is_the_frozen_probes(chat: ChatModel, freeze: Freeze) -> None:
    folder = freeze(threshold=0.3)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    found = ProbeCritic(str(folder)).assess(ROWS, chat)
    probe = FrozenProbe.from_pretrained(folder)
    wanted = probe.risk(chat.model, chat.tokenizer, PROMPTS)
    np.testing.assert_allclose(found.s, wanted.numpy(), rtol=0, atol=1e-6)
    logits = probe.logits(chat.model, chat.tokenizer, PROMPTS).numpy()
    np.testing.assert_array_equal(found.flagged, logits > 0.3)
    assert 0 < found.flagged.sum() < 20 and np.ptp(found.s) > 0.1
    # The answer is not read; the request is.
    answered = [type(one)(one.prompt, "another answer", one.where) for one in ROWS]
    np.testing.assert_array_equal(ProbeCritic(str(folder)).assess(answered, chat).s, found.s)
    assert not np.allclose(ProbeCritic(str(folder)).assess(ROWS[::-1], chat).s, found.s)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("position", POSITIONS[1:])
def test_a_probe_of_another_position_reads_the_request_there(
    position: Position, chat: ChatModel, freeze: Freeze
) -> None:
    folder = freeze(position=position)
    probe = FrozenProbe.from_pretrained(folder)
    read = capture(chat.model, chat.tokenizer, PROMPTS, position=position, layers=[1])
    found = ProbeCritic(str(folder)).assess(ROWS, chat)
    np.testing.assert_allclose(found.s, torch.sigmoid(probe(read)).numpy(), rtol=0, atol=1e-6)
    elsewhere = capture(chat.model, chat.tokenizer, PROMPTS, layers=[1])
    assert np.abs(found.s - torch.sigmoid(probe(elsewhere)).numpy()).max() > 0.01


def test_flags_are_told_by_the_logit_where_the_probability_is_1(
    chat: ChatModel, freeze: Freeze
) -> None:
    """A probability of 1 - 1e-20 is 1.0 in any number format."""
    folder = freeze(threshold=45.0, middle=45.0)
    logits = FrozenProbe.from_pretrained(folder).logits(chat.model, chat.tokenizer, PROMPTS)
    found = ProbeCritic(str(folder)).assess(ROWS, chat)
    assert set(found.s.tolist()) == {1.0} and logits.min() > 40
    np.testing.assert_array_equal(found.flagged, (logits > 45).numpy())
    assert found.flagged.sum() == 10


def test_a_threshold_of_ones_own_is_a_probability(chat: ChatModel, freeze: Freeze) -> None:
    folder = str(freeze(threshold=None))
    assert ProbeCritic(folder).assess(ROWS, chat).flagged is None
    found = ProbeCritic(folder, threshold=0.6).assess(ROWS, chat)
    np.testing.assert_array_equal(found.flagged, found.s > 0.6)
    assert 0 < found.flagged.sum() < 20


def test_shuffled_risks_are_the_probes_for_others(chat: ChatModel, freeze: Freeze) -> None:
    folder = str(freeze(threshold=0.0))
    straight = ProbeCritic(folder).assess(ROWS, chat)
    found = [ShuffledCritic(folder, seed=seed).assess(ROWS, chat) for seed in (0, 1, 0)]
    for one in found:
        np.testing.assert_array_equal(np.sort(one.s), np.sort(straight.s))
        np.testing.assert_array_equal(one.flagged, one.s > 0.5)  # they go together
        assert not np.array_equal(one.s, straight.s)
    np.testing.assert_array_equal(found[2].s, found[0].s)
    assert not np.array_equal(found[1].s, found[0].s)


def test_labels_columns_and_constants(chat: ChatModel) -> None:
    labels = LabelCritic().assess(ROWS, chat)
    np.testing.assert_array_equal(labels.s, [0.0, 1.0] * 10)
    np.testing.assert_array_equal(labels.flagged, [False, True] * 10)
    column = ColumnCritic(threshold=0.25).assess(ROWS, chat)
    np.testing.assert_array_equal(column.s, np.arange(20) / 20)
    np.testing.assert_array_equal(column.flagged, np.arange(20) > 5)
    constant = ConstantCritic(0.3).assess(ROWS, chat)
    np.testing.assert_array_equal(constant.s, [0.3] * 20)
    assert constant.flagged is None


def test_plain_errors(chat: ChatModel, freeze: Freeze, tmp_path: Path) -> None:
    row = {"prompt": "x", "completion": "y"}
    bare = examples([{**row, "label": 1, "risk": 0.1}, row])
    cases: list[tuple[Critic, str]] = [
        (LabelCritic(), "train_dataset, row 1: the row has no label"),
        (ColumnCritic(), "train_dataset, row 1: the row has no field 'risk'"),
        (ConstantCritic(1.5), "--critic.risk 1.5: a risk lies between 0 and 1"),
        (ProbeCritic(), "needs a frozen probe: make one with"),
        (ProbeCritic(str(freeze()), threshold=2.0), "--critic.threshold 2.0"),
        (ProbeCritic(str(tmp_path / "nowhere")), "no frozen probe can be read there"),
    ]
    for critic, message in cases:
        with pytest.raises(InputError) as error:
            critic.assess(bare, chat)
        assert message in str(error.value)


def test_a_probe_of_another_model_is_refused_unless_told_to_go_on(
    chat: ChatModel, freeze: Freeze
) -> None:
    folder = str(freeze())
    other = ChatModel("other", None, make_model("llama", seed=1), chat.tokenizer)
    with pytest.raises(InputError, match=r"weights .* instead of"):
        ProbeCritic(folder).assess(ROWS, other)
    went_on = ProbeCritic(folder, allow_mismatch=True).assess(ROWS, other)
    assert not np.allclose(went_on.s, ProbeCritic(folder).assess(ROWS, chat).s)


def test_an_ensemble_combines_log_odds(chat: ChatModel, freeze: Freeze, tmp_path: Path) -> None:
    folder = freeze()
    paths, logits = [], []
    for i in range(3):
        probe = FrozenProbe.from_pretrained(folder)
        probe.weight.copy_(0.2 * torch.randn(1, 32, generator=torch.Generator().manual_seed(i)))
        probe.bias.fill_(i - 1.0)
        probe.save_pretrained(tmp_path / f"probe-{i}")
        paths.append(str(tmp_path / f"probe-{i}"))
        logits.append(probe.logits(chat.model, chat.tokenizer, PROMPTS).numpy())
    ways = {
        "mean": sum(logits) / 3,
        "max": np.maximum(np.maximum(*logits[:2]), logits[2]),
        "median": sum(logits) - np.maximum(np.maximum(*logits[:2]), logits[2])
        - np.minimum(np.minimum(*logits[:2]), logits[2]),
    }  # fmt: skip
    for combine, wanted in ways.items():
        critic = EnsembleCritic(tuple(paths), combine=combine)  # type: ignore[arg-type]
        found = critic.assess(ROWS, chat)
        np.testing.assert_allclose(found.s, 1 / (1 + np.exp(-wanted)), atol=1e-6)
        np.testing.assert_array_equal(found.flagged, found.s > 0.5)
    assert np.ptp(ways["max"] - ways["median"]) > 0.01  # they differ
    for bad, message in (
        (EnsembleCritic(), "--also all"),
        (EnsembleCritic(tuple(paths), threshold=2.0), "--critic.threshold 2.0"),
        (EnsembleCritic((*paths, "nowhere")), "no frozen probe can be read there"),
    ):
        with pytest.raises(InputError) as error:
            bad.assess(ROWS, chat)
        assert message in str(error.value)


def test_categories_are_read_each_by_the_probe_that_is_to(
    chat: ChatModel, freeze: Freeze, tmp_path: Path
) -> None:
    known = asdict(FrozenProbe.from_pretrained(freeze()).config)
    paths, logits = [], []
    positions: tuple[Position, ...] = (LAST, "content-mean")
    for i, position in enumerate(positions):
        told = ((0.9, 0.8, 1.0), (0.9, 0.8, 1.0))
        config = CategoriesConfig(
            **{**known, "position": position, "threshold": 0.3},
            categories=("locks", "identity"), Cs=(1.0, 1.0), aurocs=told, threshold_noisy_or=0.4,
        )  # fmt: skip
        probe = FrozenCategories(config)
        weight = torch.randn(2, 1, 32, generator=torch.Generator().manual_seed(i))
        probe.weight.copy_(0.2 * weight)
        probe.save_pretrained(tmp_path / f"kinds-{i}")
        paths.append(str(tmp_path / f"kinds-{i}"))
        logits.append(probe.logits(chat.model, chat.tokenizer, PROMPTS).numpy())
    one = CategoriesCritic(paths[0])
    np.testing.assert_allclose(
        one.assess(ROWS, chat).s, 1 / (1 + np.exp(-logits[0].max(1))), atol=1e-9
    )
    np.testing.assert_array_equal(one.assess(ROWS, chat).flagged, logits[0].max(1) > 0.3)
    noisy = replace(one, combine="noisy-or").assess(ROWS, chat)
    s = 1 / (1 + np.exp(-logits[0]))
    np.testing.assert_allclose(noisy.s, 1 - (1 - s).prod(1), atol=1e-9)
    np.testing.assert_array_equal(noisy.flagged, np.log(noisy.s / (1 - noisy.s)) > 0.4)
    only = replace(one, only=("identity",)).assess(ROWS, chat)
    np.testing.assert_allclose(only.s, s[:, 1], atol=1e-9)
    assert f"identity {int((logits[0][:, 1] > 0).sum())}" in only.notes[0]
    both = CategoriesCritic(paths[0], also=(f"{paths[1]}?category=locks",)).assess(ROWS, chat)
    wanted = np.maximum(logits[1][:, 0], logits[0][:, 1])
    np.testing.assert_allclose(both.s, 1 / (1 + np.exp(-wanted)), atol=1e-9)
    np.testing.assert_array_equal(both.flagged, both.s > 0.5)
    for bad, message in (
        (CategoriesCritic(), "python -m probes.category_probe"),
        (CategoriesCritic(str(freeze())), "it has no categories"),
        (replace(one, only=("dragons",)), "no category dragons, only locks, identity"),
        (replace(one, also=(paths[1],)), "say which categories it reads"),
        (replace(one, threshold=-1.0), "--critic.threshold -1.0"),
    ):
        with pytest.raises(InputError) as error:
            bad.assess(ROWS, chat)
        assert message in str(error.value)
    other = ChatModel("other", None, make_model("llama", seed=1), chat.tokenizer)
    with pytest.raises(InputError, match=r"weights .* instead of"):
        one.assess(ROWS, other)
