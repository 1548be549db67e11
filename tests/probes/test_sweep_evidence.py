"""The whole command with all that can be asked of it: what it leaves is of one piece."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis import report, results
from probes import models, prompts
from probes.frozen import FrozenProbe
from probes.layer_sweep import SweepConfig, main

NAMES = {"one": "test", "two": "held-out-category", "three": "held-out-phrasings"}


def write(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("\n".join(map(json.dumps, rows)))


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> SweepConfig:
    """Three train sets and a held-out one, in which five prompts of the first are planted."""
    folder = tmp_path_factory.mktemp("evidence")
    rows = {
        name: [
            {"prompt": row.text, "label": row.label, "group": row.group}
            for row in prompts.load(f"miniature:{split}").prompts[:110]
        ]
        for name, split in {**NAMES, "twins": "look-alikes"}.items()
    }
    planted = [{**row, "prompt": f"{row['prompt']} !".upper()} for row in rows["one"][:5]]
    rows["twins"] = rows["twins"][:60] + planted
    for name, of_set in rows.items():
        write(folder / f"{name}.jsonl", of_set)
    config = SweepConfig(
        models=("miniature/llama",),
        train=tuple(str(folder / f"{name}.jsonl") for name in NAMES),
        held_out=(str(folder / "twins.jsonl"),),
        out=folder / "out",
        cache=folder / "cache",
        C=(1e-2, 1.0),
        folds=2,
        calibration="platt",
        permutations=4,
        leave_one_out=True,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("analysis.figures.redraw", lambda *_: [])
        main(config)
    return config


@pytest.fixture(scope="module")
def tables(swept: SweepConfig) -> dict[str, pd.DataFrame]:
    return results.read_all(swept.out)


def test_what_is_planted_is_found_and_not_scored(tables: dict[str, pd.DataFrame]) -> None:
    leaks = tables["leaks"]
    between = leaks[(leaks["train_set"] == "one") & (leaks["eval_set"] == "twins")]
    assert between["kind"].tolist() == ["normalised"] * 5 and between["dropped"].all()
    assert not set(between["eval_id"]) & set(tables["risks"].query("train_set == 'one'")["id"])
    n = tables["scores"].query("eval_set == 'twins'").groupby("train_set")[["n_pos", "n_neg"]]
    assert n.max().sum(axis=1).to_dict() == {
        "one": 60, "two": 65, "three": 65, "all-but-one": 65, "all-but-two": 60,
        "all-but-three": 60,
    }  # fmt: skip


def test_every_set_is_scored_by_the_probes_of_the_others(tables: dict[str, pd.DataFrame]) -> None:
    scores = tables["scores"]
    pairs = set(zip(scores["train_set"], scores["eval_set"], strict=True))
    names = set(NAMES)
    assert {(a, b) for a in names for b in names} <= pairs
    assert {(f"all-but-{name}", name) for name in names} <= pairs
    assert not {(f"all-but-{a}", b) for a in names for b in names - {a}} & pairs


def test_the_frozen_probe_is_the_calibrated_one(
    swept: SweepConfig, tables: dict[str, pd.DataFrame]
) -> None:
    chat = models.load("miniature/llama")
    probe = FrozenProbe.from_pretrained(swept.out / "miniature-llama" / "one" / "probe")
    assert probe.config.calibration == "platt"
    rows = prompts.load(swept.train[1])
    risk = probe.risk(chat.model, chat.tokenizer, rows.texts[:30]).numpy()
    of_probe = tables["risks"].query("train_set == 'one' and eval_set == 'two'").set_index("id")
    np.testing.assert_allclose(risk, [of_probe["risk"][row.id] for row in rows.prompts[:30]],
                               atol=1e-5)  # fmt: skip
    calibration = tables["calibration"].query("train_set == 'one' and eval_set == 'two'")
    brier = dict(zip(calibration["calibration"], calibration["brier"], strict=True))
    labels = of_probe["label"]
    assert ((of_probe["risk"] - labels) ** 2).mean() == pytest.approx(brier["platt"], abs=1e-6)
    assert brier["platt"] != brier["none"]
    assert calibration["frozen"].tolist() == [False, True, False]


def test_controls_and_the_nested_choice_speak_of_the_same_scores(
    tables: dict[str, pd.DataFrame],
) -> None:
    scores = tables["scores"].query("readout == 'layer' and not held_out")
    inside = scores.set_index(["train_set", "layer"])["auroc"]
    controls = tables["controls"].query("control == 'permuted-labels' and layer >= 0")
    for _, row in controls.iterrows():
        assert row["observed"] == pytest.approx(inside[row["train_set"], row["layer"]], abs=1e-3)
        assert row["p_value"] >= 1 / 5 and row["draws"] == 4
    nested = tables["nested"].set_index("train_set")
    assert set(nested.index) == set(inside.index.get_level_values(0))
    for name, row in nested.iterrows():
        assert row["selected"] == pytest.approx(inside[name].max())
        assert row["optimism"] == pytest.approx(row["selected"] - row["nested"])


def test_a_second_run_reads_what_is_there_and_fewer_controls_are_taken_away(
    swept: SweepConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("analysis.figures.redraw", lambda *_: [])
    before = {p: p.read_bytes() for p in swept.out.rglob("*.csv")}
    main(swept)
    assert {p: p.read_bytes() for p in swept.out.rglob("*.csv")} == before
    other = replace(swept, permutations=0, train=swept.train[:1], leave_one_out=False)
    main(other)
    assert not list(swept.out.glob("controls.*"))
    main(swept)


def test_its_page_names_the_worst_set(swept: SweepConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analysis.figures.redraw", lambda *_: [])
    page = report.page(swept.out)
    scores = pd.read_csv(swept.out / "scores.csv").query("train_set == 'one' and held_out")
    assert "Carries over to other sets" in page and "--leave-one-out" in page
    assert all(name in page for name in scores["eval_set"].unique())
