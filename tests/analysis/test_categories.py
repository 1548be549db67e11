"""The table and the figure of categories of harm."""

from __future__ import annotations

import io
import math
from dataclasses import replace

import pytest
from rich.console import Console

from analysis import categories, results, style
from analysis.category_rows import CategoryRow
from analysis.figures import category_aurocs
from tests.analysis.synthetic import frame

ROW = CategoryRow(
    "miniature/llama", "resid_post", "last-input-token", 4, "layer", "locks", "mine", "mine",
    False, 20, 80, 0.9, 0.8, 0.95, 0,
)  # fmt: skip
NAMES = ("locks", "identity", "max")


def table():
    rows = []
    for held_out in (False, True):
        for i, name in enumerate(NAMES):
            one = replace(
                ROW, category=name, held_out=held_out, eval_set="theirs" if held_out else "mine",
                auroc=0.9 + i / 100,
            )  # fmt: skip
            rows += [one, replace(one, readout="tfidf-word", layer=-1, auroc=0.7, auroc_lo=0.6)]
    return frame(rows)


def test_each_category_stands_beside_the_words():
    with style.context():
        figure = category_aurocs.draw(table())
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["in-distribution", "theirs"]
    for ax in figure.axes:
        marks = [line for line in ax.lines if line.get_marker() in ("o", "s")]
        by = {m: [line.get_xdata()[0] for line in marks if line.get_marker() == m] for m in "os"}
        assert by == {"o": pytest.approx([0.9, 0.91, 0.92]), "s": pytest.approx([0.7] * 3)}
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["locks", "identity", "any of them (highest)"]
    text = [entry.get_text() for entry in figure.legends[0].get_texts()]
    assert text == ["frozen probe", "the words alone (TF-IDF word)", "chance"]


def test_what_is_undefined_is_not_drawn():
    bare = table().assign(auroc=math.nan)
    with pytest.raises(results.NothingToDraw, match="none is defined"):
        category_aurocs.draw(bare)
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(categories.render(bare))
    assert "–" in console.export_text()
    twice = frame([ROW, ROW])
    with pytest.raises(results.TableError, match="two rows for"):
        category_aurocs.plotted(twice)
