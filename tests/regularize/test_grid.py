"""Cells that fail, or are killed, take no other with them; the next call tries them again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from analysis import figures
from probes.commands import run as run_command
from probes.errors import InputError
from regularize import cells, grid
from regularize.arms import Run
from regularize.compare import CompareConfig, main
from tests.regularize import faked_cells
from tests.regularize.faked_cells import plan, tries

ARMS = ("none/none", "constant-kl-0.5/none", "constant-kl-0.9/none", "adaptive-kl/label")


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CompareConfig:
    monkeypatch.setattr(cells, "_cell", faked_cells.cell)
    monkeypatch.setattr(cells, "_prepare", faked_cells.prepare)
    monkeypatch.setattr(grid, "carry_out", grid.carry_out)  # a cell in this process puts its own
    monkeypatch.setattr(figures, "redraw", lambda tables, folder: [])  # seconds each time
    plan(tmp_path)
    return CompareConfig(
        models=("miniature/llama",), experiments=("all-harmful",), seeds=(1, 2), arms=ARMS, jobs=1,
        out=tmp_path, probes=tmp_path / "probes",
    )  # fmt: skip


def the(config: CompareConfig, *parts: str) -> Run:
    (found,) = [one for one in grid.runs(config) if all(part in one.name for part in parts)]
    return found


def reason(config: CompareConfig, *parts: str) -> str:
    return cells.reason_of(the(config, *parts), config).read_text()


def test_a_cell_that_fails_is_reported_and_the_others_go_on(
    config: CompareConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    plan(config.out, **{"kl-0.5-none-seed1": "raise", "label-seed2": "refuse"})
    assert run_command(main, config) == 2
    said = capsys.readouterr()
    assert "runs that failed: 2." in said.err and f"{config.out}/runs/RUN/failed.txt" in said.err
    assert "kl-0.5-none-seed1: ValueError: no luck today\n" in said.err
    assert said.err.count("label-seed2: these rows are bad\n") == 2  # at once, and at the end
    whole = reason(config, "kl-0.5", "seed1")
    assert "Traceback" in whole and "in carry_out" in whole and "and more of it" in whole

    table = pd.read_csv(config.out / "evaluations.csv")
    seeds = table[table["metric"] == "attack_success"].groupby("defence")["seed"].apply(set)
    assert seeds["none"] == seeds["constant-kl-0.9"] == {1, 2}
    assert seeds["constant-kl-0.5"] == {2} and seeds["adaptive-kl"] == {1}
    assert "constant-kl-0.5" in said.out

    plan(config.out)
    main(config)  # mended: what failed is done now, and nothing else again
    assert not list(config.out.rglob("failed.txt"))
    again = {one.name for one in grid.runs(config) if tries(config.out, one) == 2}
    assert again == {the(config, "kl-0.5", "seed1").name, the(config, "label", "seed2").name}
    table = pd.read_csv(config.out / "evaluations.csv")
    assert set(table.groupby("defence")["seed"].nunique()) == {2}


def test_where_all_fail_there_is_no_report(config: CompareConfig) -> None:
    plan(config.out, **{"seed": "raise"})
    with pytest.raises(InputError, match="runs that failed: 8"):
        main(config)
    assert not (config.out / "evaluations.csv").is_file()


def test_what_all_cells_need_stops_before_the_first(
    config: CompareConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise InputError("the model is not there")

    monkeypatch.setattr(cells, "_prepare", refuse)
    with pytest.raises(InputError, match=r"^the model is not there$"):
        main(config)
    assert not any(tries(config.out, one) for one in grid.runs(config))


def test_data_that_are_not_there_stop_before_the_first(
    config: CompareConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(grid, "probes", lambda config: pytest.fail("went on"))
    strange = replace(grid.runs(config)[0], attack="poems")
    with pytest.raises(InputError, match="miniature:poems is no training data"):
        cells.execute([strange], config)


def test_a_killed_process_takes_no_other_cell_with_it(
    config: CompareConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of two at a time: one is killed whenever it is tried, the other was beside it."""
    both = replace(config, jobs=2, arms=ARMS[:2])
    plan(config.out, **{"none-none-seed1": "die", "none-none-seed2": "wait"})
    dead, beside = the(both, "none-none-seed1"), the(both, "none-none-seed2")
    with pytest.raises(InputError) as refused:
        main(both)
    said = str(refused.value)
    assert "runs that failed: 1." in said and f"{dead.name}: its" in said
    assert cells.KILLED in cells.reason_of(dead, both).read_text()
    assert "a process died (TerminatedWorkerError" in capsys.readouterr().err
    times = {one.name: tries(config.out, one) for one in grid.runs(both)}
    assert times.pop(dead.name) == times.pop(beside.name) == 2 and set(times.values()) == {1}
    assert [one for one in grid.runs(both) if not grid.is_done(one, both)] == [dead]
    assert set(pd.read_csv(config.out / "evaluations.csv")["defence"]) >= {"none"}

    plan(config.out)
    main(replace(both, jobs=1))
    assert grid.is_done(dead, both) and not cells.reason_of(dead, both).is_file()
    assert {one.name: tries(config.out, one) for one in grid.runs(both)}[dead.name] == 3


def test_a_pool_that_never_starts_is_no_cells_fault(
    config: CompareConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OSError("no more processes")

    monkeypatch.setattr(cells.Workers, "map", broken)
    with pytest.raises(OSError, match="no more processes"):
        main(config)


def test_seconds_are_kept_and_not_compared(config: CompareConfig) -> None:
    main(config)
    one = grid.runs(config)[0]
    assert grid.seconds_of(one, config) == 12.5 and grid.is_done(one, config)
    path = grid.folder_of(one, config) / grid.DONE
    saved = json.loads(path.read_text())
    path.write_text(json.dumps({**saved, "seconds": 99.0}))
    assert grid.is_done(one, config)
    del saved["seconds"]  # as older results have it
    path.write_text(json.dumps(saved))
    assert grid.is_done(one, config) and grid.seconds_of(one, config) is None
    path.write_text(json.dumps({**saved, "n": 7}))
    assert not grid.is_done(one, config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"jobs": 0}, "--jobs 0"),
        ({"cluster": "slurm:here"}, "--cluster slurm:here: give dask: or ray:"),
        ({"cluster": "dask:"}, "--cluster dask:: give"),
    ],
)
def test_bad_options(config: CompareConfig, change: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        main(replace(config, **change))
