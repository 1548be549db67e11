"""Tables on disk: what is written is read back, equal rows are equal bytes, broken are named."""

import math
import os
from dataclasses import fields, replace
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis import results
from analysis.results import EvaluationRow, RiskRow, ScoreRow, StepRow, TableError
from tests.analysis import synthetic

ROW = synthetic.scores(models=("m",), n_layers=1, held_out=())[0]
TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=8)
FLOAT = st.floats(allow_nan=True)


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
@given(
    text=TEXT,
    number=FLOAT,
    layer=st.integers(-1, 200),
    held_out=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_a_row_comes_back_exactly(tmp_path_factory, suffix, text, number, layer, held_out):
    stem = tmp_path_factory.mktemp("table") / "scores"
    row = replace(ROW, model=text, auroc=number, layer=layer, held_out=held_out)
    results.write([row], stem)
    table = results.read(stem.with_suffix(f".{suffix}"), ScoreRow)
    assert list(table.columns) == [field.name for field in fields(ScoreRow)]
    back = ScoreRow(**table.iloc[0].to_dict())
    for field in fields(ScoreRow):
        was, now = getattr(row, field.name), getattr(back, field.name)
        if field.type in ("float", float) and math.isnan(was):
            assert math.isnan(now)
        else:
            assert now == was, field.name


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
@pytest.mark.parametrize(
    "name, row, rows",
    [
        ("evaluations", EvaluationRow, synthetic.evaluations(models=("m",))),
        ("steps", StepRow, synthetic.steps(models=("m",), n_steps=5)),
    ],
)
def test_the_tables_of_training_come_back_exactly(tmp_path, suffix, name, row, rows):
    results.write(rows, tmp_path / name)
    stem = tmp_path / f"{name}.{suffix}"
    pd.testing.assert_frame_equal(results.read(stem, row), synthetic.frame(rows), check_dtype=False)
    assert rows[0].learning_rate != rows[0].learning_rate or name == "steps"  # A NaN among them.
    for path in tmp_path.iterdir():
        if path != stem:
            path.unlink()
    assert list(results.read_all(tmp_path)) == [name]
    spoilt = results.read(stem, row).drop(columns="learning_rate")
    (spoilt.to_parquet if suffix == "parquet" else spoilt.to_csv)(stem, index=False)
    with pytest.raises(TableError, match=rf"no column learning_rate; a {row.__name__} needs it"):
        results.read_all(tmp_path)


@pytest.mark.parametrize("name", ["NA", "", "007", "null", "True", 'a,"b"', "ü – 漢字"])
def test_names_stay_names_in_csv(tmp_path, name):
    results.write([replace(ROW, eval_set=name)], tmp_path / "scores")
    assert results.read(tmp_path / "scores.csv", ScoreRow)["eval_set"].iloc[0] == name
    # The control: pandas alone would have made something else of most of them.
    if name in ("NA", "", "007", "null", "True"):
        assert pd.read_csv(tmp_path / "scores.csv")["eval_set"].iloc[0] != name


def test_both_files_hold_the_same(tmp_path):
    results.write(synthetic.risks(n=6), tmp_path / "risks")
    parquet, csv = (
        results.read(tmp_path / f"risks.{kind}", RiskRow) for kind in ("parquet", "csv")
    )
    pd.testing.assert_frame_equal(parquet, csv)
    assert results.find(tmp_path, "risks") == tmp_path / "risks.parquet"
    (tmp_path / "risks.parquet").unlink()
    assert results.find(tmp_path, "risks") == tmp_path / "risks.csv"
    assert results.find(tmp_path, "scores") is None


def test_equal_rows_are_equal_bytes(tmp_path):
    for folder in ("a", "b"):
        results.write(synthetic.scores(), tmp_path / folder / "scores")
    results.write(synthetic.scores(seed=1), tmp_path / "c" / "scores")
    for name in ("scores.parquet", "scores.csv"):
        a, b, c = ((tmp_path / folder / name).read_bytes() for folder in "abc")
        assert a == b
        assert a != c


@pytest.mark.parametrize("rows", [[], [ROW, synthetic.risks(n=1)[0]]])
def test_rows_of_no_or_several_kinds_are_refused(tmp_path, rows):
    with pytest.raises(TableError, match="rows of one kind"):
        results.write(rows, tmp_path / "scores")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_pair(tmp_path, monkeypatch):
    results.write([ROW], tmp_path / "scores")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    written = Path.write_bytes

    def full_disk(path, content):
        written(path, content[: len(content) // 2])
        if "csv" in path.name:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="No space"):
        results.write([replace(ROW, auroc=0.1)], tmp_path / "scores")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_more_columns_may_stand_beside(tmp_path):
    table = pd.DataFrame([{name: getattr(ROW, name) for name in ScoreRow.__slots__}])
    table.assign(note="mine").to_csv(tmp_path / "scores.csv", index=False)
    assert results.read(tmp_path / "scores.csv", ScoreRow)["note"].tolist() == ["mine"]


BROKEN_CSV = {
    "no column": (lambda t: t.drop(columns=["auroc", "seed"]), "no column auroc, seed"),
    "text for a number": (lambda t: t.assign(auroc="high"), "line 2: column auroc is 'high'"),
    "a comma for a point": (lambda t: t.assign(auroc="0,98"), "line 2: column auroc is '0,98'"),
    "fraction for a layer": (lambda t: t.assign(layer=1.5), "line 2: column layer is '1.5'"),
    "hole in a layer": (lambda t: t.assign(layer=None), "line 2: column layer is ''"),
    "a bool of another tongue": (lambda t: t.assign(held_out="ja"), "column held_out is 'ja'"),
    "no rows": (lambda t: t.iloc[:0], "holds no rows"),
}


@pytest.mark.parametrize("case", BROKEN_CSV)
def test_broken_csv_is_named(tmp_path, case):
    spoil, message = BROKEN_CSV[case]
    path = tmp_path / "scores.csv"
    results.write([ROW], tmp_path / "scores")
    results.read(path, ScoreRow)  # Whole before it is spoilt.
    spoil(pd.read_csv(path)).to_csv(path, index=False)
    with pytest.raises(TableError, match=message) as error:
        results.read(path, ScoreRow)
    assert str(path) in str(error.value)


BROKEN_PARQUET = {
    "no column": (lambda t: t.drop(columns="model"), "no column model"),
    "text for a number": (lambda t: t.assign(auroc="0.98"), "column auroc is .*, not a number"),
    "number for a name": (lambda t: t.assign(model=3), "column model is int64, not text"),
    "fraction for a layer": (lambda t: t.assign(layer=1.5), "column layer is float64"),
    "hole in a name": (lambda t: t.assign(model=None), "column model has an empty field"),
    "number for a bool": (lambda t: t.assign(held_out=1), "column held_out is int64"),
}


@pytest.mark.parametrize("case", BROKEN_PARQUET)
def test_broken_parquet_is_named(tmp_path, case):
    spoil, message = BROKEN_PARQUET[case]
    path = tmp_path / "scores.parquet"
    results.write([ROW], tmp_path / "scores")
    results.read(path, ScoreRow)
    spoil(pd.read_parquet(path)).to_parquet(path)
    with pytest.raises(TableError, match=message) as error:
        results.read(path, ScoreRow)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    "name, content",
    [
        ("scores.csv", b""),
        ("scores.csv", b"\xff\xfe\x00model"),
        ("scores.csv", b'model,layer\n"open'),
        ("scores.parquet", b"PAR1 no parquet"),
        ("scores.parquet", b""),
        ("absent.csv", None),
    ],
)
def test_unreadable_files_are_named(tmp_path, name, content):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TableError, match=str(path)):
        results.read(path, ScoreRow)


def test_slices_tell_apart_what_one_picture_cannot_show():
    def frame(**changes):
        return pd.DataFrame([{**{n: getattr(ROW, n) for n in ScoreRow.__slots__}, **changes}])

    assert [suffix for suffix, _ in results.slices(frame())] == [""]
    two = pd.concat(
        [frame(train_set="hub:org/b"), frame(train_set="a.csv"), frame(train_set="a.csv")]
    )
    assert [(suffix, len(part)) for suffix, part in results.slices(two)] == [
        ("-hub-org-b", 1),
        ("-a.csv", 2),
    ]
    seeds = pd.concat([frame(seed=0), frame(seed=1, hook_point="attn_out")])
    assert [suffix for suffix, _ in results.slices(seeds)] == [
        "-resid_post-seed0",
        "-attn_out-seed1",
    ]


def test_seeds_of_runs_are_never_split():
    evaluations = synthetic.frame(synthetic.evaluations(models=("m",)))
    steps = synthetic.frame(synthetic.steps(models=("m",), n_steps=2))
    for name, table in (("evaluations", evaluations), ("steps", steps)):
        assert table["seed"].nunique() == 3
        ((suffix, whole),) = results.slices(table, name)
        assert suffix == ""
        assert whole is table
    judged = pd.concat([evaluations.assign(detector=name) for name in ("a", "b/c")])
    found = {suffix: len(part) for suffix, part in results.slices(judged, "evaluations")}
    assert found == {"-a": len(evaluations), "-b-c": len(evaluations)}


def test_no_temporary_file_is_left(tmp_path):
    results.write([ROW], tmp_path / "deep" / "scores")
    assert sorted(os.listdir(tmp_path / "deep")) == ["scores.csv", "scores.parquet"]
