"""The one table: measured in parts, merged, told; and the command that does it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console

from analysis import results
from analysis.results import BenchRow
from tests.analysis import synthetic
from tests.benchmarks import __main__ as command
from tests.benchmarks import table
from tests.benchmarks.cases import Against, Baseline, Group

NAN = float("nan")


def row(baseline: str, ratio: float = 0.5, *, failed: str = "", **more) -> BenchRow:
    lo, hi = (NAN, NAN) if failed else (ratio - 0.1, ratio + 0.1)
    ratio = NAN if failed else ratio
    return BenchRow("bench", "case", baseline, ratio, lo, hi, NAN, NAN, failed=failed, **more)


def group(*names: str, case: str = "case", ours=lambda: np.ones(2), device: str = "cpu") -> Group:
    baselines = tuple(Baseline(name, lambda _: Against(lambda: np.ones(2))) for name in names)
    return Group("bench", case, lambda: None, lambda _: ours, baselines, device=device)


EVERY = (group("a", "b", "c"),)


def test_new_rows_take_the_place_of_old_ones_in_the_groups_order(tmp_path) -> None:
    table.merge(tmp_path, [row("c"), row("a"), row("gone")], EVERY)
    merged = table.merge(tmp_path, [row("b", 0.7), row("a", 0.9)], EVERY)
    assert [(one.baseline, one.time_ratio) for one in merged] == [
        ("a", 0.9),
        ("b", 0.7),
        ("c", 0.5),
    ]
    assert [one.baseline for one in results.rows(tmp_path, "bench")] == ["a", "b", "c"]
    assert (tmp_path / "bench.csv").exists() and (tmp_path / "bench.parquet").exists()


def test_numbers_are_kept_where_a_machine_cannot_measure_but_not_where_it_fails(tmp_path) -> None:
    table.merge(tmp_path, [row("a"), row("b")], EVERY)
    now = [row("a", failed="not measured: no GPU"), row("b", failed="Mismatch: results differ")]
    a, b = table.merge(tmp_path, [*now], EVERY)
    assert (a.time_ratio, a.failed) == (0.5, "")
    assert np.isnan(b.time_ratio) and b.failed.startswith("Mismatch")
    assert table.measured(tmp_path) == {("bench", "case", "a")}
    (again,) = table.merge(tmp_path, [row("b", 0.8)], (group("b"),))
    assert (again.time_ratio, again.failed) == (0.8, "")


def test_failures_are_those_that_are_not_for_want_of_a_device(tmp_path) -> None:
    rows = [row("a"), row("b", failed="not measured: no GPU"), row("c", failed="OSError: full")]
    table.merge(tmp_path, rows, EVERY)
    read = results.read_all(tmp_path)["bench"]
    assert table.failures(read) == ["FAILED bench, case, c: OSError: full"]


def test_every_row_is_told_with_its_share_and_reason() -> None:
    rows = [row("a", where="here", rounds=5), row("b", failed="not measured: no GPU"),
            replace(row("c", 1.25), goal=0.6)]  # fmt: skip
    rows[1] = replace(rows[1], case="a [case]")  # no mark-up of rich's
    console = Console(width=150)
    with console.capture() as shown:
        console.print(table.render(synthetic.frame(rows)))
    text = shown.get()
    for said in ("0.50 [0.40, 0.60]", "here", "not measured: no GPU", "80% (goal 60%)",
                 "a [case]", "median [quartiles]"):  # fmt: skip
        assert said in text
    assert table.line(rows[1]) == "a [case] | b: not measured: no GPU"


def test_a_table_of_before_is_read(tmp_path) -> None:
    """It says neither where nor in how many rounds."""
    old = "bench,case,baseline,time_ratio,time_ratio_lo,time_ratio_hi,memory_ratio,parity\n"
    (tmp_path / "bench.csv").write_text(old + "capture,x,y,0.5,0.4,0.6,,1e-07\n")
    (found,) = results.rows(tmp_path, "bench")
    assert (found.time_ratio, found.where, found.rounds, found.failed) == (0.5, "", 0, "")
    assert np.isnan(found.goal) and np.isnan(found.memory_ratio)
    (tmp_path / "bench.csv").write_text("bench,case\ncapture,x\n")
    with pytest.raises(results.TableError, match="no column baseline, time_ratio"):
        results.rows(tmp_path, "bench")


class Bench:
    """A module with groups."""

    def __init__(self, *groups: Group) -> None:
        self.groups = lambda: groups


@pytest.fixture
def benches(monkeypatch):
    """Two small benches in place of the real ones; of growth none."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = {
        "capture": Bench(group("a", "b", case="one"), group("a", case="two")),
        "gpu": Bench(group("a", case="three", device="cuda")),
    }
    monkeypatch.setattr(command, "BENCHES", found)
    monkeypatch.setattr(command.growth, "run", lambda *_: [])
    return found


def there(folder) -> list[tuple[str, str]]:
    return [(one.case, one.baseline) for one in results.rows(folder, "bench")]


def test_parts_of_it_are_measured_and_the_rest_stays(benches, tmp_path) -> None:
    def run(*chosen, **options) -> int:
        return command.main(
            command.BenchConfig(chosen, rounds=1, memory=False, out=tmp_path, **options)
        )

    assert run("capture", only="two") == 0
    assert there(tmp_path) == [("two", "a")]
    assert run("gpu") == 0
    assert run("capture", only="one b") == 0
    assert there(tmp_path) == [("one", "b"), ("two", "a"), ("three", "a")]
    assert run("capture", only="two", quick=True) == 0
    assert there(tmp_path / "quick") == [("two", "a")]
    before = {one.baseline + one.case: str(one) for one in results.rows(tmp_path, "bench")}
    assert run("capture", "gpu", resume=True) == 0
    after = {one.baseline + one.case: str(one) for one in results.rows(tmp_path, "bench")}
    assert len(after) == 4
    assert all(after[key] == before[key] for key in ("bone", "atwo"))
    assert (tmp_path / "bench_ratios.png").exists()


def test_a_row_that_fails_is_told_and_counted(benches, tmp_path, capsys) -> None:
    benches["capture"] = Bench(group("a", ours=lambda: np.zeros(2)), group("b", case="other"))
    config = command.BenchConfig(("capture", "gpu"), rounds=1, memory=False, out=tmp_path)
    assert command.main(config) == 1
    assert "FAILED bench, case, a: Mismatch" in capsys.readouterr().out
    assert [one.failed == "" for one in results.rows(tmp_path, "bench")] == [False, True, False]


def test_what_nothing_answers_to_is_an_error(benches, tmp_path) -> None:
    config = command.BenchConfig(("capture",), only="no such case", out=tmp_path)
    with pytest.raises(SystemExit, match="no row"):
        command.main(config)


def test_keys_are_unique_over_all_benches() -> None:
    keys = [
        (one.bench, one.case, b.name)
        for bench in command.BENCHES.values()
        for one in bench.groups()
        for b in one.baselines
    ]
    assert len(keys) == len(set(keys)) > 40
