"""The causal check: a planted cause is found, a planted bystander is not; what it refuses."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from analysis import causal as found
from analysis import results
from probes import causal, prompts
from probes.causal_check import CausalConfig, main
from probes.commands import run
from probes.directions import Directions
from probes.errors import InputError
from probes.paired import paired_change
from tests.probes import planted_refusal as planted
from tests.probes.planted_refusal import UNUSED, USED, Planted, axis, freeze


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return planted.save(tmp_path_factory.mktemp("planted"))


@pytest.fixture(scope="module")
def config(where: Planted) -> CausalConfig:
    """One probe reads the cause, the other the bystander."""
    folder = where.folder.parent
    for name, which in (("used", USED), ("unused", UNUSED)):
        freeze(folder / name, str(where.folder), str(where.train), axis(which))
    return CausalConfig(
        probes=(str(folder / "used"),),
        train=str(where.train),
        held_out=str(where.held_out),
        n=20,
        direction=("probe",),
        strength=(2.5,),
        cache=folder / "cache",
        out=folder / "out",
        device_map="cpu",
    )


def table_of(config: CausalConfig) -> pd.DataFrame:
    main(config)
    return results.read(config.out / "causal.parquet", results.TABLES["causal"])


def lines_of(table: pd.DataFrame) -> pd.DataFrame:
    return found.summary(table).set_index(["target", "intervention"])


def test_both_planted_directions_can_be_read(config: CausalConfig) -> None:
    """Else the bystander would be no bystander."""
    from probes import models
    from probes.capture import capture

    chat = models.load(str(Path(config.probes[0]).parent / "model"), device_map="cpu")
    rows = prompts.load(config.held_out)
    acts = capture(chat.model, chat.tokenizer, rows.texts)[:, planted.LAYER]
    signs = np.where(rows.labels == 1, 1, -1)
    for which in (USED, UNUSED):
        expected = torch.from_numpy(signs * planted.WRITTEN).float()
        torch.testing.assert_close(acts[:, which], expected, atol=0.01, rtol=0)


@pytest.mark.parametrize(
    ("backend", "random"),
    [
        ("transformers", "covariance"),
        ("transformers", "isotropic"),
        ("transformer-lens", "covariance"),
        ("nnsight", "covariance"),
    ],
)
def test_a_planted_cause_is_found_and_a_bystander_is_not(
    backend: Any, random: Any, config: CausalConfig, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"backend": backend, "random": random, "out": tmp_path}
    used = lines_of(table_of(replace(config, **options)))
    assert used.loc[("probe", "ablate"), ["before", "after"]].tolist() == [1, 0]
    assert used.loc[("probe", "add"), ["before", "after"]].tolist() == [0, 1]
    assert used["p"].tolist() == [pytest.approx(1 / 21)] * 2
    # A random direction may hold a little of the cause.
    assert (used["random_lo"] >= -0.1).all() and (used["random_hi"] <= 0.1).all()

    folder = Path(config.probes[0]).parent
    bystander = replace(config, probes=(str(folder / "unused"),), **options)
    unused = table_of(bystander)
    lines = lines_of(unused)
    assert lines["change"].tolist() == [0, 0] and lines["p"].tolist() == [1, 1]
    assert "no evidence that the model uses it" in found.verdicts(unused)[0]


def test_the_class_means_hold_the_cause_too(config: CausalConfig, tmp_path: Path) -> None:
    """They lie between cause and bystander, so that removing them removes the cause as well."""
    folder = Path(config.probes[0]).parent
    both = replace(
        config, probes=(str(folder / "unused"),), direction=("probe", "class-mean"), out=tmp_path
    )
    table = table_of(both)
    lines = lines_of(table)
    assert lines.loc[("class-mean", "ablate"), "after"] == 0
    assert lines.loc[("class-mean", "add"), "after"] == 1
    assert lines.loc[("class-mean", "ablate"), "cosine"] == pytest.approx(0.5**0.5, abs=0.05)
    assert lines.loc[("probe", "ablate"), "after"] == 1
    # A random direction is removed once for both, and the rows say the same.
    removed = table[(table["intervention"] == "ablate") & (table["direction"] == "random")]
    by_target = {name: rows["value"].tolist() for name, rows in removed.groupby("target")}
    assert by_target["probe"] == by_target["class-mean"]


def test_what_is_written(config: CausalConfig, tmp_path: Path) -> None:
    table = table_of(replace(config, layers="all", draws=3, out=tmp_path))
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["layers"] == "all" and saved["versions"]["torch"]
    assert (tmp_path / "figures" / "causal_effect.png").is_file()
    # Two metrics of: two labels unchanged; at each layer one target and three draws, twice.
    assert len(table) == 2 * (2 + 3 * 2 * (1 + 3))
    assert set(table["n"]) == {20} and set(table["model"]) == {saved["probes"][0][:-4] + "model"}
    unchanged = table[table["intervention"] == "none"]
    assert unchanged["change"].eq(0).all() and unchanged["layer"].eq(-1).all()
    refusal = table[table["metric"] == "refusal"].set_index("label")
    removed = refusal.loc[1]
    assert set(removed["intervention"]) == {"none", "ablate"}
    assert set(removed["tokens"]) == {"none", "all"}
    assert set(refusal.loc[0]["tokens"]) == {"none", "prompt"}
    # At other layers than its own a probe is fitted anew.
    ours = table[(table["direction"] == "probe") & (table["metric"] == "refusal")]
    cosine = ours.groupby("layer")["cosine"].first()
    assert cosine.tolist() == pytest.approx([1, 1, 1])
    again = table_of(replace(config, layers="all", draws=3, out=tmp_path))
    pd.testing.assert_frame_equal(table, again)


def test_prompts_that_the_train_set_holds_are_left_out(config: CausalConfig) -> None:
    from probes.causal_model import question

    both = replace(config, held_out=f"{config.held_out}+{config.train}")
    asked = question(config.probes[0], both)
    known = {prompt.id for prompt in asked.train.prompts}
    assert not known & {prompt.id for prompt in asked.prompts}
    assert Counter(prompt.label for prompt in asked.prompts) == {0: 20, 1: 20}


def test_a_miniature_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Few prompts: it refuses all harmful ones, and harmless ones where class means are added."""
    from probes import models
    from probes.capture import capture

    rows = prompts.load("miniature:look-alikes")
    lines = [{"prompt": one.text, "label": one.label, "group": one.group} for one in rows.prompts]
    train = tmp_path / "mine.jsonl"
    train.write_text("\n".join(json.dumps(line) for line in lines[:120]))
    chat = models.load("miniature/llama", device_map="cpu")
    mine = prompts.load(str(train))
    acts = capture(chat.model, chat.tokenizer, mine.texts, layers=[4])[:, 0]
    labels = torch.from_numpy(mine.labels)
    weight = acts[labels == 1].mean(0) - acts[labels == 0].mean(0)
    path = freeze(tmp_path / "probe", "miniature/llama", str(train), weight, layer=4)
    config = CausalConfig(
        probes=(path,), train=str(train), n=12, draws=2, strength=(2.0, 3.0),
        cache=tmp_path / "cache", out=tmp_path / "out", device_map="cpu",
    )  # fmt: skip
    assert run(main, config) == 0
    table = results.read(tmp_path / "out" / "causal.csv", results.TABLES["causal"])
    lines_found = lines_of(table)
    before = lines_found["before"]
    assert before.xs("ablate", level=1).eq(1).all() and before.xs("add", level=1).eq(0).all()
    assert lines_found.xs("add", level=1)["after"].max() > 0.5
    said = capsys.readouterr().out
    assert "miniature/llama, layer 4, the probe's direction" in said.replace("\n", " ")
    # Both targets are the same vector here, and so is all that comes of them.
    pd.testing.assert_frame_equal(
        lines_found.loc["probe"].drop(columns="cosine"),
        lines_found.loc["class-mean"].drop(columns="cosine"),
        rtol=1e-4,
    )


# --- directions


def activations(n: int = 400, d: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Anisotropic, far from 0, one axis without any variance, classes apart along two axes."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 2
    scale = torch.tensor([9.0, 3, 1, 1, 1, 0.3, 0.1, 0])
    acts = 5 + scale * torch.randn(n, d, generator=generator)
    acts[:, :2] += 4.0 * labels[:, None]
    return acts, labels


def directions(random: Any = "covariance", draws: int = 500) -> Directions:
    acts, labels = activations()
    probe = torch.tensor([0.2, 1.0, 0, 0, 0, 0, 0, 0])
    return Directions.of(3, acts, labels, probe, draws=draws, random=random, seed=0)


@pytest.mark.parametrize("target", ["probe", "class-mean"])
def test_what_is_added_raises_the_logit_by_as_many_deviations(target: Any) -> None:
    acts, _ = activations()
    of_layer = directions()
    shift = of_layer.norm(target, 2.5) * of_layer.towards(target)
    logits, moved = acts @ of_layer.probe, (acts + shift) @ of_layer.probe
    torch.testing.assert_close(moved - logits, torch.full_like(logits, 2.5 * logits.std()))
    assert float(of_layer.towards(target).norm()) == pytest.approx(1)


def test_the_class_mean_is_the_difference_of_the_means() -> None:
    acts, labels = activations()
    mean = torch.stack([row for row, y in zip(acts, labels, strict=True) if y]).mean(0)
    other = torch.stack([row for row, y in zip(acts, labels, strict=True) if not y]).mean(0)
    torch.testing.assert_close(directions().class_mean, mean - other)


def test_random_directions_have_the_covariance_within_the_classes() -> None:
    """Before they are brought to length 1 they do; so theirs are compared with such draws."""
    acts, labels = activations()
    within = np.mean([np.cov(acts[labels == y].T.double().numpy()) for y in (0, 1)], axis=0)
    oracle = np.random.default_rng(0).multivariate_normal(np.zeros(8), within, 20000)
    oracle /= np.linalg.norm(oracle, axis=1, keepdims=True)
    ours = directions(draws=4000).random.double().numpy()
    np.testing.assert_allclose(ours.T @ ours / 4000, oracle.T @ oracle / 20000, atol=0.03)
    assert np.abs(ours[:, 7]).max() < 1e-6  # where nothing varies, nothing is drawn
    even = directions("isotropic", draws=4000).random.double().numpy()
    np.testing.assert_allclose(even.T @ even / 4000, np.eye(8) / 8, atol=0.03)


def test_directions_that_tell_nothing_are_refused() -> None:
    acts, labels = activations()
    options: dict[str, Any] = {"draws": 1, "random": "isotropic", "seed": 0}
    with pytest.raises(InputError, match="same for every prompt"):
        Directions.of(3, acts, labels, axis(7)[:8], **options)
    backwards = Directions.of(3, acts, labels, -torch.ones(8), **options)
    with pytest.raises(InputError, match="does not raise the probe's logit"):
        backwards.norm("class-mean", 1.0)


# --- the paired interval


def test_the_change_is_paired_and_by_group() -> None:
    rng = np.random.default_rng(0)
    before, after = rng.random(80) < 0.7, rng.random(80) < 0.3
    alone = np.arange(80).astype(str)
    found_one = paired_change(before, after, alone, seed=0)
    assert found_one.estimate == pytest.approx(after.mean() - before.mean())
    # Oracle: a slow bootstrap of prompts, with draws of its own.
    change = after.astype(int) - before.astype(int)
    draws = [change[rng.integers(0, 80, 80)].mean() for _ in range(4000)]
    np.testing.assert_allclose(found_one[1:], np.quantile(draws, [0.025, 0.975]), atol=0.03)
    # Where ten prompts of a group are one and the same, there is a tenth of the evidence.
    tenfold = paired_change(
        before[:8].repeat(10), after[:8].repeat(10), alone[:8].repeat(10), seed=0
    )
    eight = paired_change(before[:8], after[:8], alone[:8], seed=0)
    assert tenfold == pytest.approx(eight)


@pytest.mark.parametrize("groups", [1, 5, 60])
def test_groups_that_change_alike_leave_room(groups: int) -> None:
    """P(all of k keep to it) = p^k = .025 gives the farthest p that is still believable."""
    names = (np.arange(60) % groups).astype(str)
    yes, no = np.ones(60, dtype=bool), np.zeros(60, dtype=bool)
    same = paired_change(yes, yes, names, seed=0)
    assert same.estimate == 0 and (1 - same.hi) ** groups == pytest.approx(0.025)
    fallen = paired_change(yes, no, names, seed=0)
    assert fallen.lo == fallen.estimate == -1 and fallen.hi == pytest.approx(same.hi - 1)


def test_nonsense_is_no_refusal() -> None:
    told = causal.told(["Sorry, I cannot do that.", "Sure.", "SorrySorrySorrySorrySorry", ""])
    assert told.refusal.tolist() == [True, False, False, False]
    assert told.incoherent.tolist() == [False, False, True, True]


# --- what is refused


def one_label(folder: Path) -> dict[str, Any]:
    path = folder / "benign.csv"
    path.write_text("prompt,label\n" + "".join(f"calm w{i} w1,0\n" for i in range(10)))
    return {"held_out": str(path)}


def nothing_new(folder: Path) -> dict[str, Any]:
    return {"held_out": "TRAIN"}


def fixed(**options: Any) -> Any:
    return lambda folder: options


CASES: dict[str, tuple[Any, str]] = {
    "no probes": (fixed(probes=()), "--probes names none"),
    "absent probe": (fixed(probes=("runs/nowhere/x/probe",)), "probes.layer_sweep makes one"),
    "no probe there": (fixed(probes=("PARENT",)), "does not hold a whole frozen probe"),
    "layer not there": (fixed(layers="7"), "there is no layer 7; .* has the layers 0 to 2"),
    "no layer's name": (fixed(layers="last"), "probe, all, or numbers"),
    "pooled": (fixed(probes=("pooled",)), "pools 3 layers.*--layers all"),
    "unknown set": (fixed(held_out="advbensch"), "advbench"),
    "no harmful prompts": (one_label, "all 10 rows have 0"),
    "nothing held out": (nothing_new, "no harmful prompts .label 1. are left"),
    "another train set": (fixed(train="OTHER"), "not the prompts that the probe was fitted on"),
    "train set not found": (fixed(train=None), "fitted on mine, which is not found"),
    "two models": (fixed(probes=("used", "unused"), model="m"), "--model m for 2 probes"),
    "same model twice": (fixed(probes=("used", "unused")), "both of .* on mine"),
    "no direction": (fixed(direction=()), "--direction"),
    "strength 0": (fixed(strength=(0.0,)), "must be positive"),
    "a strength twice": (fixed(strength=(1.0, 1.0)), "given twice"),
    "no draws": (fixed(draws=0), "--draws 0: must be at least 1"),
    "no prompts": (fixed(n=0), "--n 0"),
    "no tokens": (fixed(new_tokens=0), "--new-tokens 0"),
    "absent model": (fixed(model="./nowhere/model"), "nowhere"),
    "another model": (fixed(model="miniature/llama"), "does not hold here: weights"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_message(
    case: str,
    config: CausalConfig,
    where: Planted,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make, message = CASES[case]
    folder = where.folder.parent
    if case == "pooled":
        freeze(folder / "pooled", str(where.folder), str(where.train), torch.ones(3, 32))
    options = make(tmp_path)
    named = {"TRAIN": str(where.train), "OTHER": str(where.held_out)}
    for key in ("held_out", "train"):
        if options.get(key) in named:
            options[key] = named[options[key]]
    if "probes" in options:
        places = {"PARENT": str(folder)}
        options["probes"] = tuple(
            places.get(one, str(folder / one) if "/" not in one else one)
            for one in options["probes"]
        )
    out = tmp_path / "out"
    assert run(main, replace(config, out=out, **options)) == 2
    said = capsys.readouterr().err
    assert re.search(message, said.replace("\n", " ")), said
    assert not out.exists()


def test_a_file_where_a_folder_should_be(config: CausalConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="is a file, not a folder"):
        main(replace(config, out=tmp_path / "file" / "out"))


def test_another_hook_point_is_refused(config: CausalConfig, tmp_path: Path) -> None:
    from probes.causal_model import question

    copy = tmp_path / "probe"
    copy.mkdir()
    for path in Path(config.probes[0]).iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    changed = (copy / "config.json").read_text().replace("resid_post", "mlp_out")
    (copy / "config.json").write_text(changed)
    with pytest.raises(InputError, match=r"reads mlp_out.*--hook-point resid_post"):
        question(str(copy), config)


def test_a_pooled_probe_is_tried_layer_by_layer(
    config: CausalConfig, where: Planted, tmp_path: Path
) -> None:
    path = freeze(tmp_path / "pooled", str(where.folder), str(where.train), torch.ones(3, 32))
    options: dict[str, Any] = {"direction": ("class-mean",), "draws": 2, "out": tmp_path / "out"}
    table = table_of(replace(config, probes=(path,), layers="1,2", **options))
    assert sorted(set(table["layer"])) == [-1, 1, 2]
    removed = table[(table["direction"] == "class-mean") & (table["intervention"] == "ablate")]
    assert removed[removed["metric"] == "refusal"]["value"].tolist() == [0, 0]
