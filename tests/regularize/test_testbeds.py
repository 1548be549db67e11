"""A testbed is one folder: a tiny one beside the miniatures, compared from end to end."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from probes.errors import InputError
from regularize import anchors, data, testbeds
from regularize.compare import CompareConfig, main
from regularize.plugins import name_of

MINIATURE = "miniature/llama"


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Iterator[testbeds.Testbed]:
    more = Path(__file__).parent / "more_testbeds"
    monkeypatch.setattr(testbeds, "__path__", [*testbeds.__path__, str(more)])
    yield testbeds.known()["tiny"]
    del sys.modules["regularize.testbeds.tiny"]


@pytest.fixture
def config(tiny: testbeds.Testbed, tmp_path: Path) -> CompareConfig:
    return CompareConfig(
        models=tiny.models, seeds=(1,), out=tmp_path / "out", probes=tmp_path / "probes", jobs=1
    )


def test_another_folder_is_another_testbed(config: CompareConfig, capsys) -> None:
    main(config)
    table = pd.read_csv(config.out / "evaluations.csv")
    success = table[table["metric"] == "attack_success"].set_index("defence")["value"]
    assert success["none"] >= 0.9
    assert max(success[["before", "anchored", "anchored+anchors"]]) <= 0.1
    assert set(table["n"]) == {12} and set(table["attack"]) == {"requests", "none"}
    assert "anchored+anchors" in capsys.readouterr().out

    written = json.loads((config.out / "config.json").read_text())
    assert written["experiments"] == ["only"] and written["by_length"]
    assert (written["learning_rate"], written["epochs"], written["n"]) == (5e-3, 3, 12)
    runs = sorted((config.out / "runs").iterdir())
    assert len(runs) == 3
    for run in runs:
        assert len((run / "answers.jsonl").read_text().splitlines()) == 12

    # What is done stays done, until what it was made from is another.
    done = {path: path.stat().st_mtime_ns for path in config.out.rglob("runs/*/done.json")}
    main(config)
    assert done == {path: path.stat().st_mtime_ns for path in done}
    main(replace(config, n=11, arms=("none/none",)))
    changed = [path.parent.name for path in done if path.stat().st_mtime_ns != done[path]]
    assert len(changed) == 1 and "none-none" in changed[0]


def test_its_data_and_anchors_have_specs(tiny: testbeds.Testbed) -> None:
    assert data.load("tiny:requests", seed=3) == tiny.training("requests", seed=3)
    assert anchors.load("tiny:anchors") == tiny.anchors()
    assert len(anchors.load("tiny:anchors", n=1)) == 1


def test_what_there_is(tiny: testbeds.Testbed) -> None:
    known = testbeds.known()
    assert known.keys() >= {"miniature", "tiny"}
    for name, testbed in known.items():
        assert testbed.name == name_of(testbed) == name
        assert all(testbeds.of(model).name == name for model in testbed.models)
        for model in testbed.models:
            assert "probe" in testbed.sweeps(model, Path("out"), Path("probes"))


def test_anchors_of_one_kind() -> None:
    miniature = testbeds.of(MINIATURE)
    some = miniature.anchors(20, kind="harmful", seed=1)
    assert len(set(map(str, some))) == 20
    assert len(miniature.anchors(seed=1)) == 300
    with pytest.raises(InputError, match="harmful, look-alike, utility"):
        miniature.anchors(2, kind="poems")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": ("Qwen/other",)}, "Qwen.*of its testbeds only: .*miniature/phi3"),
        ({"models": ("miniature/llama-base",)}, "of its testbeds only"),
        ({"models": ()}, "at least one"),
        ({"experiments": ("only", "shares")}, "--experiments shares: .* on tiny, only only"),
        ({"models": (MINIATURE,), "experiments": ("all",)}, "on miniature, only all-harmful, mix"),
        ({"arms": ("anchored/none",)}, "no experiment has such an arm"),
    ],
)
def test_what_cannot_be_compared(config: CompareConfig, change: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        main(replace(config, **change))


def test_one_comparison_has_one_testbed(config: CompareConfig) -> None:
    with pytest.raises(InputError, match="several testbeds"):
        main(replace(config, models=(MINIATURE, *config.models)))
