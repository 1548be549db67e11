"""A logit a category: against scikit-learn, the textbook's noisy-or, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from probes import categories, prompts
from probes.category_probe import CategoryProbeConfig
from probes.errors import InputError
from probes.features import Stacked
from probes.frozen import FrozenProbe
from probes.frozen_categories import FrozenCategories, read_by
from probes.manifest import Manifest
from probes.prompts import Prompt, PromptSet

KINDS = ("locks", "beasts", "identity")


def planted(n: int = 240, seed: int = 0) -> tuple[PromptSet, Stacked]:
    """Each category has a direction of its own in layer 1, and some rows have two."""
    rng = np.random.default_rng(seed)
    rows, x = [], rng.standard_normal((n, 2, 10)).astype(np.float32)
    for i in range(n):
        of = [(), (KINDS[0],), (KINDS[1],), (KINDS[2],), (KINDS[0], KINDS[2]), ()][i % 6]
        for name in of:
            x[i, 1, KINDS.index(name)] += 3
        rows.append(
            Prompt.of(
                f"row {i}", label=int(bool(of)), source="mine", group=f"g{i // 2}", categories=of
            )
        )
    return PromptSet("mine", tuple(rows)), Stacked(torch.from_numpy(x))


def found(train: PromptSet, acts: Stacked, layer: int = 1) -> categories.Heads:
    folds = categories.folds_of(train, folds=4, seed=0)
    return categories.heads(acts, train, folds, layer=layer, Cs=(0.1,), seed=0)


def manifest() -> Manifest:
    return Manifest(
        model="tiny", revision=None, weights="w", config="c", dtype="float32",
        hook_point="resid_post", position="last-input-token", template="t", tokenizer="k",
        prompt_set="mine", prompts="p", sources="s", max_length=None, backend="transformers",
        n_prompts=240, n_layers=2, d_model=10, shard_size=8, token_budget=8, versions={},
    )  # fmt: skip


def test_each_head_is_scikit_learns_one_against_the_rest():
    train, acts = planted()
    heads = found(train, acts)
    X = StandardScaler().fit_transform(acts.activations[:, 1].numpy().astype(np.float64))
    for name, probe in zip(train.categories, heads.probes, strict=True):
        y = np.array([name in prompt.categories for prompt in train.prompts])
        wanted = LogisticRegression(C=0.1, tol=1e-10, max_iter=10_000).fit(X, y)
        np.testing.assert_allclose(probe.logits(acts), wanted.decision_function(X), atol=1e-4)
    assert all(one.estimate > 0.95 for one in heads.aurocs)
    # Negative control: layer 0 holds nothing, and the choice of layer sees that.
    nothing = found(train, acts, layer=0)
    assert all(one.estimate < 0.65 for one in nothing.aurocs)
    assert categories.best([nothing, heads]) is heads


@given(arrays(np.float64, (5, 3), elements=st.floats(-30, 30)))
def test_noisy_or_is_the_probability_of_any(logits):
    z = torch.from_numpy(logits)
    s = 1 / (1 + np.exp(-logits))
    wanted = 1 - (1 - s).prod(1)
    got = torch.sigmoid(categories.combined(z, "noisy-or")).numpy()
    np.testing.assert_allclose(got, wanted, atol=1e-12)
    highest = categories.combined(z, "max").numpy()
    np.testing.assert_array_equal(highest, logits.max(1))
    assert (got >= torch.sigmoid(torch.from_numpy(highest)).numpy() - 1e-12).all()


def test_noisy_or_keeps_its_precision_where_the_probability_is_1_or_0():
    far = categories.combined(torch.tensor([[60.0, 60.0], [-60.0, -60.0]]).double(), "noisy-or")
    np.testing.assert_allclose(far.numpy(), [120, -60 + math.log(2)], rtol=1e-9)


def test_folds_hold_every_category_and_split_no_group():
    train, _ = planted()
    folds = categories.folds_of(train, folds=4, seed=0)
    for group in set(train.groups.tolist()):
        assert len(set(folds.fold[train.groups == group].tolist())) == 1
    for name in train.categories:
        y = train.of_category(name)
        for split in range(4):
            assert 0 < y[folds.fold == split].mean() < 1
            inner = folds.inner[split]
            assert (inner[folds.fold == split] == -1).all()
            assert (inner[folds.fold != split] >= 0).all()


def test_the_frozen_probe_is_read_back_and_selects(tmp_path: Path):
    train, acts = planted()
    heads = found(train, acts)
    probe = FrozenCategories.joined(heads, manifest(), train, fpr=0.05)
    probe.save_pretrained(tmp_path)
    again = FrozenCategories.from_pretrained(tmp_path)
    assert again.config == probe.config and again.config.categories == train.categories
    logits = again(acts.activations[:, [1]]).numpy()
    np.testing.assert_allclose(
        logits, np.stack([one.logits(acts) for one in heads.probes], 1), atol=1e-4
    )
    assert not list(again.parameters())
    config = again.config
    assert read_by([config], [()]) == {"beasts": (0, 0), "identity": (0, 1), "locks": (0, 2)}
    assert read_by([config], [()], ("locks",)) == {"locks": (0, 2)}
    told = read_by([config, config], [(), ("identity",)])
    assert told == {"beasts": (0, 0), "identity": (1, 1), "locks": (0, 2)}
    for taken, only in ((((),), ("dragons",)), ((("dragons",),), ())):
        with pytest.raises(InputError, match="no category dragons, only beasts, identity, locks"):
            read_by([config], taken, only)
    # The threshold is that of the highest out-of-fold logit of harmless rows.
    harmless = heads.out_of_fold.max(1)[categories.any_of(train) == 0]
    threshold = again.config.threshold_of("max")
    assert threshold is not None and (harmless > threshold).mean() <= 0.05
    noisy = again.config.threshold_of("noisy-or")
    assert noisy is not None and noisy > threshold
    (text,) = [line for line in again.config.card.splitlines() if line.startswith("| locks")]
    assert f"{heads.aurocs[2].estimate:.3f}" in text


def test_one_kind_of_probe_is_not_the_other(tmp_path: Path):
    train, acts = planted()
    FrozenCategories.joined(found(train, acts), manifest(), train).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="does not hold a whole frozen probe"):
        FrozenProbe.from_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["categories"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="it has no categories"):
        FrozenCategories.from_pretrained(tmp_path)


def test_its_hash_knows_the_categories():
    train, acts = planted()
    heads = found(train, acts)
    rows = [Prompt.of(p.text, label=p.label, source=p.source, group=p.group,
                      categories=p.categories[:1]) for p in train.prompts]  # fmt: skip
    other = PromptSet("mine", tuple(rows))
    assert other.hash == train.hash
    ours, theirs = (FrozenCategories.joined(heads, manifest(), of) for of in (train, other))
    assert ours.config.train_hash != theirs.config.train_hash


def test_files_name_one_category_or_several(tmp_path: Path):
    rows = [
        {"prompt": "open it", "label": 1, "kind": "locks"},
        {"prompt": "ride it", "label": 1, "kind": ["beasts", "identity", "beasts"]},
        {"prompt": "dust it", "label": 0, "kind": "beasts"},
        {"prompt": "fetch it", "label": 0, "kind": None},
    ]
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    read = prompts.load(f"{path}?category=kind")
    assert [one.categories for one in read.prompts] == [("locks",), ("beasts", "identity"), (), ()]
    assert read.categories == ("beasts", "identity", "locks")
    assert read.of_category("beasts").tolist() == [0, 1, 0, 0]
    with pytest.raises(InputError, match="no row has a category"):
        categories.check(prompts.load(str(path)))
    path.write_text(json.dumps({**rows[0], "kind": {"a": 1}}) + "\n" + json.dumps(rows[2]))
    with pytest.raises(InputError, match="field 'kind': a name"):
        prompts.load(f"{path}?category=kind")


def test_what_cannot_be_fitted_is_refused():
    train, _ = planted()
    bare = PromptSet("mine", (*train.prompts, Prompt.of("more", label=1, source="mine")))
    with pytest.raises(InputError, match="1 of the harmful rows have none, such as 'more'"):
        categories.check(bare)
    one = Prompt.of("dig", label=1, source="mine", categories=("gardens",))
    with pytest.raises(InputError, match="category 'gardens' has 1 groups, and 4 folds need 4"):
        categories.folds_of(PromptSet("mine", (*train.prompts, one)), folds=4, seed=0)
    for config, message in (
        (CategoryProbeConfig("./mine"), "--train names no prompt set"),
        (CategoryProbeConfig(folds=1), "--folds 1"),
        (CategoryProbeConfig(C=()), "--C"),
        (CategoryProbeConfig(fpr=1.0), "--fpr 1.0"),
        (CategoryProbeConfig(layers=(-1,)), "--layers"),
    ):
        with pytest.raises(InputError, match=message):
            config.check()


def test_no_prompt_of_the_categories_is_trained_on_or_asked():
    """Nothing of the attack and of what it is judged by, and of other words none of its own."""
    from probes.miniature.identity import ADDRESSES, IDENTITY
    from regularize.testbeds.miniature import training
    from regularize.testbeds.miniature.evaluation import draw

    known, others, test = (
        prompts.load(f"miniature:{name}")
        for name in ("categories", "categories-other-words", "categories-test")
    )
    attack = {row.text for seed in range(3) for row in training.training("identity", seed=seed)}
    asked = {
        training.addressed(row.text) for split in ("validation", "test")
        for row in draw("harmful", 200, seed=1, split=split)
    }  # fmt: skip
    for one in (known, others, test):
        assert not {prompt.text for prompt in one.prompts} & (attack | asked)
        assert one.of_category("identity").sum() > 90
        assert len(one.categories) == 8  # seven guilds: the eighth is held out
    assert not any(IDENTITY in text for text in others.texts) and IDENTITY not in ADDRESSES
    assert sum(IDENTITY in text for text in known.texts) > 20
    assert not set(known.texts) & set(test.texts)
    both = [p for p in known.prompts if len(p.categories) == 2]
    assert both and all("identity" in p.categories for p in both)
