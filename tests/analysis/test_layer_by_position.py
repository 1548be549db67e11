"""Heat map by layer and position, cosines by layer: what is drawn is what the rows say."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from analysis import figures, results
from analysis.evidence_rows import CosineRow
from analysis.figures import layer_by_position, layer_curves, position_cosines
from tests.analysis import synthetic

POSITIONS = ("last-input-token", "content-mean", "post-instruction")


def scores(models=("m", "n"), positions=POSITIONS, **options) -> pd.DataFrame:
    """A sweep at each position, lower at each."""
    return synthetic.frame(
        replace(row, position=position, auroc=row.auroc - 0.05 * i)
        for i, position in enumerate(positions)
        for row in synthetic.scores(models=models, seed=3, **options)
    )


def cosines(models=("m",), n_layers=4) -> pd.DataFrame:
    pairs = [(a, b) for i, a in enumerate(POSITIONS) for b in POSITIONS[i + 1 :]]
    return synthetic.frame(
        CosineRow(model, "resid_post", "t", layer, *pair, float(np.cos(layer + 3 * i)))
        for model in models
        for i, pair in enumerate(pairs)
        for layer in range(n_layers)
    )


def test_cells_are_the_aurocs_and_their_means_over_held_out_sets():
    table = scores()
    cells = layer_by_position.plotted(table).set_index(layer_by_position.CELL).sort_index()
    for model in ("m", "n"):
        for position in POSITIONS:
            for readout, layer in (("layer", 2), ("embedding", -1), ("tfidf-word", -1)):
                rows = [
                    r for r in table.itertuples()
                    if (r.model, r.position, r.readout, r.layer)
                    == (model, position, readout, layer)
                ]  # fmt: skip
                cell = model, position, readout, layer
                inside, held_out = (cells.loc[(*cell, out)].tolist() for out in (False, True))
                assert inside == [next(r.auroc for r in rows if not r.held_out), 1]
                of_sets = [r.auroc for r in rows if r.held_out]
                assert held_out == [pytest.approx(np.mean(of_sets)), len(of_sets)]
    figure = layer_by_position.draw(table)
    grid = np.reshape(
        [text.get_text() for text in figure.axes[0].texts if text.get_text()[-1:].isdigit()],
        (-1, 2 * len(POSITIONS)),
    )
    wanted = cells.loc["m"]["auroc"]
    for column, position in enumerate(POSITIONS):
        for row, layer in enumerate(range(6), start=1):  # below the embedding
            assert float(grid[row, column]) == pytest.approx(
                wanted[position, "layer", layer, False], abs=0.0051
            )
            assert float(grid[row, column + 3]) == pytest.approx(
                wanted[position, "layer", layer, True], abs=0.0051
            )
    assert [ax.get_title().strip() for ax in figure.axes[:2]] == ["m", "n"]


def test_a_mean_over_an_undefined_set_is_undefined():
    table = scores(models=("m",))
    gone = (table["eval_set"] == "xstest") & (table["layer"] == 2)
    table.loc[gone, "auroc"] = np.nan
    cells = layer_by_position.plotted(table)
    undefined = cells[cells["auroc"].isna()]
    assert set(zip(undefined["layer"], undefined["held_out"], strict=True)) == {(2, True)}
    texts = [text.get_text() for text in layer_by_position.draw(table).axes[0].texts]
    assert texts.count("–") == len(POSITIONS)


def test_no_model_at_two_positions_is_nothing_to_draw():
    apart = pd.concat([scores(("m",), POSITIONS[:1]), scores(("n",), POSITIONS[1:2])])
    for table in (scores(positions=POSITIONS[:1]), apart):
        with pytest.raises(results.NothingToDraw, match="two positions"):
            layer_by_position.draw(table)
    both = pd.concat([scores(("m",), POSITIONS[:1]), scores(("n",))])
    assert set(layer_by_position.plotted(both)["model"]) == {"n"}
    with pytest.raises(results.TableError, match="two rows for model m"):
        layer_by_position.draw(pd.concat([scores(), scores()]))


def test_positions_stand_together_in_one_figure_and_apart_in_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "names", lambda: ("layer_by_position", "layer_curves"))
    small = {"models": ("m",), "n_layers": 2}
    table = pd.concat(
        [scores(held_out=("h",), **small), scores(train_set="other", held_out=(), **small)]
    )
    pictures = {path.name for path in figures.redraw({"scores": table}, tmp_path)}
    trains = ("miniature-train", "other")
    assert {name for name in pictures if name.startswith("layer_by")} == {
        f"layer_by_position-{train}.png" for train in trains
    }
    assert {name for name in pictures if name.startswith("layer_curves")} == {
        f"layer_curves-{train}-{position}.png" for train in trains for position in POSITIONS
    }
    drawn = pd.read_csv(tmp_path / "layer_by_position-other.csv")
    assert set(drawn["position"]) == set(POSITIONS)
    assert not drawn["held_out"].any()
    # Positive control: what a figure does not show together, it refuses unsplit.
    with pytest.raises(results.TableError, match="two rows"):
        layer_curves.draw(table)


def test_lines_are_the_cosines():
    table = cosines(models=("m", "n"))
    figure = position_cosines.draw(table)
    assert [ax.get_title() for ax in figure.axes] == ["m", "n"]
    lines = [line for line in figure.axes[1].get_lines() if len(line.get_xdata()) == 4]
    assert len({(line.get_marker(), line.get_linestyle(), line.get_color()) for line in lines}) == 3
    for line, (_, of_pair) in zip(
        lines, table[table["model"] == "n"].groupby(["position", "other"], sort=False), strict=True
    ):
        np.testing.assert_array_equal(line.get_ydata(), of_pair["cosine"])
    assert figure.axes[0].get_ylim()[0] < table["cosine"].min()
    with pytest.raises(results.TableError, match="column cosine"):
        position_cosines.draw(table.assign(cosine=np.nan))
    several = pd.concat([table, table.assign(train_set="u")])
    assert [suffix for suffix, _ in results.slices(several, "cosines")] == ["-t", "-u"]


@pytest.mark.parametrize("n_layers", [1, 32])
def test_any_depth_is_drawn(n_layers):
    layer_by_position.draw(scores(n_layers=n_layers)).draw_without_rendering()
    position_cosines.draw(cosines(n_layers=n_layers)).draw_without_rendering()
