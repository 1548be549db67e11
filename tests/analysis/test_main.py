"""The command `python -m analysis`, as a user runs it."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from analysis import results
from tests.analysis import synthetic

ROOT = Path(__file__).parents[2]


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "analysis", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "100", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def folder(tmp_path):
    results.write(synthetic.scores(models=("m",), held_out=("a", "b")), tmp_path / "scores")
    results.write(synthetic.risks(models=("m",), held_out=("a", "b"), n=20), tmp_path / "risks")
    return tmp_path


def test_it_redraws_prints_and_the_bytes_stay_the_same(folder, tmp_path):
    outs = [tmp_path / "first", tmp_path / "second"]
    for out, seed in zip(outs, "12", strict=True):
        done = run("--results", folder, "--out", out, PYTHONHASHSEED=seed)
        assert done.returncode == 0, done.stderr
        assert "AUROC [95 % interval] of probes trained on miniature:train" in done.stdout
        assert "layer_curves.png" in done.stdout
        assert done.stderr == ""
    first, second = ({p.name: p.read_bytes() for p in out.iterdir()} for out in outs)
    assert len(first) == 9
    assert first == second


def test_csv_alone_is_enough_and_a_table_that_is_absent_is_passed_over(folder, tmp_path):
    for path in (*folder.glob("*.parquet"), folder / "risks.csv"):
        path.unlink()
    done = run("--results", folder, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    drawn = {path.stem for path in (tmp_path / "out").iterdir()}
    assert drawn == {"layer_curves", "held_out_heatmap"}


def test_defences_are_printed_and_drawn_from_their_tables_alone(tmp_path):
    results.write(synthetic.evaluations(models=("m",)), tmp_path / "evaluations")
    results.write(synthetic.steps(models=("m",), n_steps=5), tmp_path / "steps")
    done = run("--results", tmp_path, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "m: mixed, 9 % harmful, learning rate 5e-3, 3 seeds" in done.stdout
    assert "AUROC" not in done.stdout
    drawn = {path.stem for path in (tmp_path / "out").iterdir()}
    assert drawn == {
        "attack_by_learning_rate", "attack_by_share", "loss_curves", "safety_utility",
        "training_curves",
    }  # fmt: skip


def test_stability_and_cost_are_printed_drawn_and_written_as_tables(tmp_path):
    one = [("mixed", 0.09, 5e-3)]
    results.write(synthetic.evaluations(models=("m",), settings=one), tmp_path / "evaluations")
    results.write(synthetic.steps(models=("m",), n_steps=30), tmp_path / "steps")
    results.write(synthetic.costs(models=("m",)), tmp_path / "costs")
    tables = tmp_path / "tables"
    done = run("--results", tmp_path, "--out", tmp_path / "out", "--tables", tables)
    assert done.returncode == 0, done.stderr
    for words in ("spikes beside SFT's, seed by seed", "m, reweight: not measured"):
        assert words in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100 + len(str(tables))
    drawn = {path.stem for path in (tmp_path / "out").iterdir()}
    assert drawn == {"cost", "loss_curves", "safety_utility", "stability", "training_curves"}
    written = {f"table_{name}.{kind}" for name in ("cost", "defences", "stability")
               for kind in ("md", "tex", "csv")}  # fmt: skip
    assert {path.name for path in tables.iterdir()} == written
    for name in ("cost", "defences", "stability"):
        assert (tables / f"table_{name}.md").read_text().count("| SFT |") == 1
        assert "\nSFT & " in (tables / f"table_{name}.tex").read_text()
    assert len(pd.read_csv(tables / "table_stability.csv")) == 7


def test_evaluations_of_several_detectors_are_printed_one_by_one(tmp_path):
    one = [("mixed", 0.09, 5e-3)]
    table = synthetic.frame(synthetic.evaluations(models=("m",), settings=one, seeds=(0,)))
    judged = pd.concat([table.assign(detector=name) for name in ("phrases", "mine/guard")])
    judged.to_csv(tmp_path / "evaluations.csv", index=False)
    done = run("--results", tmp_path, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "\nphrases\n" in done.stdout
    assert "\nmine-guard\n" in done.stdout
    assert (tmp_path / "out" / "safety_utility-mine-guard.png").exists()


def test_bad_input_is_a_message_and_code_2(folder, tmp_path):
    (folder / "scores.parquet").unlink()
    text = (folder / "scores.csv").read_text()
    (folder / "scores.csv").write_text(text.replace("auroc_lo", "low"))
    (tmp_path / "file").write_text("")
    cases = {
        "no column auroc_lo": ("--results", folder),
        "holds no table (scores.parquet or scores.csv": ("--results", tmp_path / "absent"),
        "--rezults": ("--rezults", "x"),
    }
    for message, arguments in cases.items():
        done = run(*arguments, "--out", tmp_path / "out")
        assert done.returncode == 2, message
        assert message in done.stderr
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "out").exists()


def test_an_unwritable_folder_is_a_message_and_code_2(folder, tmp_path):
    (tmp_path / "file").write_text("kept")
    done = run("--results", folder, "--out", tmp_path / "file")
    assert done.returncode == 2
    assert str(tmp_path / "file") in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "file").read_text() == "kept"


def test_help_is_quick_and_tells_all():
    start = time.perf_counter()
    done = run("--help")
    assert time.perf_counter() - start < 2
    assert done.returncode == 0
    for word in ("--results", "--out", "figures", "png, pdf"):
        assert word in done.stdout
