"""The table of AUROC: the layer is chosen in-distribution, and what is printed fits."""

import io
import math
from dataclasses import replace

import pandas as pd
import pytest
from rich.console import Console

from analysis import results, tables
from analysis.results import ScoreRow
from tests.analysis import synthetic


def frame(rows):
    return pd.DataFrame([{name: getattr(row, name) for name in ScoreRow.__slots__} for row in rows])


def printed(scores, width=100):
    console = Console(file=io.StringIO(), width=width)
    console.print(tables.render(scores))
    return console.file.getvalue()


def with_curve(rows, auroc_by_layer, **where):
    """The rows with other AUROCs at the layers of one curve."""
    return [
        replace(row, auroc=auroc_by_layer[row.layer])
        if row.readout == "layer" and all(getattr(row, k) == v for k, v in where.items())
        else row
        for row in rows
    ]


def test_best_layer_is_chosen_in_distribution_and_never_by_held_out():
    rows = synthetic.scores(models=("m",), n_layers=4, held_out=("a", "b"))
    rows = with_curve(rows, [0.6, 0.9, 0.8, 0.7], held_out=False)
    for held_out in ([0.99, 0.5, 0.5, 0.5], [0.5, 0.5, 0.5, 0.99]):
        assert tables.best_layer(frame(with_curve(rows, held_out, held_out=True))) == 1
    # The control: in-distribution it does follow the curve; and a tie goes to the earlier layer.
    assert tables.best_layer(frame(with_curve(rows, [0.6, 0.9, 0.8, 0.95], held_out=False))) == 3
    assert (
        tables.best_layer(frame(with_curve(rows, [0.6, 1.0, 1.0, math.nan], held_out=False))) == 1
    )


def test_each_cell_is_the_row_it_says():
    rows = synthetic.scores()
    scores = frame(rows)
    table = tables.auroc_table(scores)
    assert len(table) == len(synthetic.MODELS) * (1 + len(synthetic.HELD_OUT))
    for line in table.to_dict("records"):
        of_set = [r for r in rows if (r.model, r.eval_set) == (line["model"], line["eval_set"])]
        at_best = {r.readout: r.auroc for r in of_set if r.layer in (-1, line["layer"])}
        for readout in tables.READOUTS:
            assert line[readout] == at_best[readout]
        assert line["auroc"] == at_best["layer"]
        assert line["tfidf"] == max(at_best["tfidf-word"], at_best["tfidf-char"])
        assert line["n_layers"] == 6


@pytest.mark.parametrize("width", [100, 120])
def test_it_fits_the_terminal_with_every_number_whole(width):
    text = printed(frame(synthetic.scores()), width)
    assert max(len(line) for line in text.splitlines()) <= width
    for row in tables.auroc_table(frame(synthetic.scores())).to_dict("records"):
        interval = f"{row['auroc']:.3f} [{row['auroc_lo']:.3f}, {row['auroc_hi']:.3f}]"
        assert interval.replace("0.", ".") in text
        assert row["eval_set"] in text or not row["held_out"]
    assert "microsoft/Phi-3.5-mini-instruct" in text or width < 105


def test_what_is_undefined_or_absent_is_a_dash_and_never_a_number():
    rows = [
        r for r in synthetic.scores(models=("m",), held_out=("a",)) if "pooled" not in r.readout
    ]
    nan = math.nan
    rows = [
        replace(r, auroc=nan, auroc_lo=nan, auroc_hi=nan) if r.eval_set == "a" else r for r in rows
    ]
    line = next(line for line in printed(frame(rows)).splitlines() if line.split()[:1] == ["a"])
    assert line.split()[2:] == ["–"] * 6


def test_no_in_distribution_value_is_an_error_that_names_the_model():
    rows = [r for r in synthetic.scores(models=("m",)) if r.held_out]
    with pytest.raises(results.TableError, match="m: no layer has an in-distribution AUROC"):
        tables.auroc_table(frame(rows))


def test_repeated_rows_are_refused():
    rows = synthetic.scores(models=("m",))
    with pytest.raises(results.TableError, match="two rows for model m"):
        tables.auroc_table(frame([*rows, rows[0]]))


def test_markdown_holds_the_same_cells():
    scores = frame(synthetic.scores(models=("m",), held_out=("a",)))
    lines = tables.markdown(scores).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert {len(line) for line in cells} == {len(tables.HEADINGS)}
    assert cells[0][0] == "evaluated on"
    assert "embedding" in cells[0]
    assert cells[2][0] == "**m**"
    for row, line in zip(tables.auroc_table(scores).to_dict("records"), cells[3:], strict=True):
        assert float(line[-1]) == pytest.approx(row["tfidf"], abs=5e-4)
        assert float(line[2].split()[0]) == pytest.approx(row["auroc"], abs=5e-4)
