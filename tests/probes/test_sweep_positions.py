"""A sweep of several positions is the sweeps of each, from one run of the model."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from probes import model_sweep, models, prompts
from probes.cosines import cosines
from probes.errors import InputError
from probes.frozen import FrozenProbe
from probes.hooks import POSITIONS
from probes.layer_sweep import SweepConfig, main
from tests.probes.test_layer_sweep import contents, forbidden, write

SOME = ("last-input-token", "post-instruction", "content-mean")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> SweepConfig:
    folder = tmp_path_factory.mktemp("positions")
    for name, split, n in (("mine", "test", 120), ("twins", "look-alikes", 40)):
        write(folder / f"{name}.jsonl", prompts.load(f"miniature:{split}").prompts[:n])
    return SweepConfig(
        models=("miniature/llama",),
        train=(str(folder / "mine.jsonl"),),
        held_out=(str(folder / "twins.jsonl"),),
        positions=SOME,
        out=folder / "out",
        cache=folder / "cache",
        C=(1e-2,),
        folds=2,
    )


@pytest.fixture(scope="module")
def swept(config: SweepConfig) -> SweepConfig:
    main(config)
    return config


def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analysis.figures.redraw", lambda *_: [])


def of_model(out: Path) -> Path:
    return out / "miniature-llama" / "mine"


def test_each_position_gives_what_it_gives_alone(
    swept: SweepConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undrawn(monkeypatch)
    scores = pd.read_csv(swept.out / "scores.csv")
    assert list(scores["position"].unique()) == list(SOME)
    for position in SOME[:2]:
        alone = replace(swept, positions=(position,), out=tmp_path / position)
        main(replace(alone, cache=tmp_path / "cache"))
        wanted = pd.read_csv(alone.out / "scores.csv")
        found = scores[scores["position"] == position].reset_index(drop=True)
        pd.testing.assert_frame_equal(found, wanted)
        folder = of_model(swept.out) / ("" if position == SOME[0] else position)
        probes = contents(folder / "probe"), contents(of_model(alone.out) / "probe")
        assert probes[0] == probes[1]
        if position == SOME[0]:
            for name in ("scores.csv", "risks.csv", "done.json"):
                assert (folder / name).read_bytes() == (of_model(alone.out) / name).read_bytes()
            assert (swept.out / "risks.csv").read_bytes() == (alone.out / "risks.csv").read_bytes()
        assert not list(alone.out.rglob("cosines*"))
    layers = scores[(scores["readout"] == "layer") & (scores["layer"] == 3)]
    assert layers.groupby("eval_set")["auroc"].nunique().max() > 1  # positive control


def test_the_probe_of_each_position_reads_there(swept: SweepConfig) -> None:
    chat = models.load("miniature/llama")
    rows = prompts.load(swept.held_out[0])
    for position in SOME:
        folder = of_model(swept.out) / ("" if position == SOME[0] else position)
        probe = FrozenProbe.from_pretrained(folder / "probe")
        assert probe.config.position == position
        table = pd.read_csv(folder / "risks.csv").set_index(["eval_set", "id"])["risk"]
        wanted = torch.tensor([table["twins", row.id] for row in rows.prompts])
        found = probe.risk(chat.model, chat.tokenizer, rows.texts).double()
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
        assert "one token" in probe.config.card or "the mean of" in probe.config.card


def test_cosines_are_of_the_probes_weights(swept: SweepConfig) -> None:
    table = pd.read_csv(swept.out / "cosines.csv")
    assert len(table) == 3 * 6
    weights = {
        position: load_file(
            of_model(swept.out) / ("" if position == SOME[0] else position) / model_sweep.DIRECTIONS
        )["weight"]
        for position in SOME
    }
    for (position, other), rows in table.groupby(["position", "other"]):
        wanted = cosines(weights[position], weights[other])
        assert rows.sort_values("layer")["cosine"].tolist() == wanted.tolist()
    for position in SOME:  # the frozen probe is one of them
        folder = of_model(swept.out) / ("" if position == SOME[0] else position)
        probe = FrozenProbe.from_pretrained(folder / "probe")
        assert torch.equal(probe.weight[0], weights[position][probe.config.layers[0]])


def test_figures_show_positions_together_and_apart(swept: SweepConfig) -> None:
    names = {path.name for path in (swept.out / "figures").glob("*.png")}
    assert {"layer_by_position.png", "position_cosines.png"} <= names
    assert {f"layer_curves-{position}.png" for position in SOME} <= names


def test_a_second_run_computes_nothing_and_one_position_alone_leaves_no_cosines(
    swept: SweepConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(swept.out) | contents(swept.cache)
    undrawn(monkeypatch)
    for place in ("scoring.sweep", "filling.capture_rows", "filling.capture_spans"):
        monkeypatch.setattr(f"probes.{place}", forbidden)
    main(swept)
    assert contents(swept.out) | contents(swept.cache) == before
    main(replace(swept, positions=SOME[:1]))
    assert set(before) - set(contents(swept.out) | contents(swept.cache)) == {
        "cosines.csv",
        "cosines.parquet",
    }
    main(swept)
    assert contents(swept.out) | contents(swept.cache) == before


def test_positions_are_checked_before_anything_is_loaded() -> None:
    options: dict[str, Any] = {"positions": ()}
    for options["positions"] in ((), (POSITIONS[1], POSITIONS[1])):
        with pytest.raises(InputError, match="--positions: name at least one position, and none"):
            SweepConfig(**options).check()
