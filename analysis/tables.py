"""The table of AUROC: one row a model and evaluation set, for the terminal and for the README."""

from __future__ import annotations

import math
from typing import NamedTuple

import pandas as pd
from rich import box
from rich.table import Table

from analysis import results, style

READOUTS = ("pooled-mean", "pooled-concat", "class-mean", "embedding")
HEADINGS = (
    "evaluated on", "n (+/-)", "AUROC at\nbest layer", "pooled\nmean", "pooled\nconcat",
    "class\nmean", "embed-\nding", "TF-IDF",
)  # fmt: skip


class _Line(NamedTuple):
    """One printed line: a model's heading, or one evaluation set under it."""

    heading: bool
    cells: tuple[str, ...]


def best_layer(scores: pd.DataFrame) -> int:
    """The layer of highest in-distribution AUROC of one model; the earlier one on a tie.

    Held-out sets have no say: a layer chosen on them would no longer be held out from them.

    Raises:
        TableError: no layer has an in-distribution AUROC.
    """
    inside = scores[(scores["readout"] == "layer") & ~scores["held_out"]].dropna(subset="auroc")
    if inside.empty:
        model = scores["model"].iloc[0]
        raise results.TableError(f"{model}: no layer has an in-distribution AUROC to choose by")
    by_layer = inside.groupby("layer")["auroc"].mean()
    return int(by_layer.index[int(by_layer.argmax())])


def auroc_table(scores: pd.DataFrame) -> pd.DataFrame:
    """One row a model and evaluation set of one slice of the scores; NaN where a value is missing.

    Columns: model, eval_set, held_out, n_pos, n_neg, n_layers, layer (the best one), auroc,
    auroc_lo, auroc_hi (at that layer), then the AUROC of pooled-mean, pooled-concat, class-mean
    (at that layer), embedding, and tfidf (the better of word and char on that very set).
    """
    results.unique(scores, ["model", "readout", "layer", "eval_set"])
    rows = []
    for model, of_model in scores.groupby("model", sort=False):
        best = best_layer(of_model)
        for name, held_out in style.evaluation_sets(of_model).items():
            cells = of_model[of_model["eval_set"] == name]
            at_best = cells[cells["layer"].isin([best, -1]) | (cells["readout"] == "embedding")]
            by_readout = at_best.set_index("readout")
            auroc = by_readout["auroc"]
            interval = by_readout.reindex(["layer"])[["auroc", "auroc_lo", "auroc_hi"]].iloc[0]
            rows.append({
                "model": model,
                "eval_set": name,
                "held_out": held_out,
                "n_pos": cells["n_pos"].iloc[0],
                "n_neg": cells["n_neg"].iloc[0],
                "n_layers": of_model["layer"].max() + 1,
                "layer": best,
                **interval,
                **{readout: auroc.get(readout, math.nan) for readout in READOUTS},
                "tfidf": auroc.reindex(["tfidf-word", "tfidf-char"]).max(),
            })  # fmt: skip
    return pd.DataFrame(rows)


def render(scores: pd.DataFrame) -> Table:
    """The AUROC table of one slice, for a terminal of 100 columns."""
    position = scores["position"].iloc[0]
    where = "" if position == "last-input-token" else f" at {position}"
    table = Table(
        title=f"AUROC [95 % interval] of probes{where} trained on {scores['train_set'].iloc[0]}",
        caption="The best layer is chosen in-distribution. TF-IDF (the better of words and "
        "characters) sees the text alone: what a probe has to beat.",
        box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False,
        title_style="bold", caption_justify="left",
    )  # fmt: skip
    table.add_column(HEADINGS[0], overflow="fold")
    for heading in HEADINGS[1:]:
        table.add_column(heading, justify="right", no_wrap=True)
    for i, line in enumerate(_lines(auroc_table(scores))):
        if line.heading and i:
            table.add_section()
        name = line.cells[0] if line.heading else f" {line.cells[0]}"
        table.add_row(name, *line.cells[1:], style="bold" if line.heading else None)
    return table


def markdown(scores: pd.DataFrame) -> str:
    """The AUROC table of one slice, as GitHub's Markdown."""
    headings = [name.replace("-\n", "").replace("\n", " ") for name in HEADINGS]
    lines = [headings, ["---"] + ["---:"] * (len(headings) - 1)]
    for line in _lines(auroc_table(scores)):
        lines.append([f"**{cell}**" if line.heading and cell else cell for cell in line.cells])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _lines(table: pd.DataFrame) -> list[_Line]:
    lines: list[_Line] = []
    for model, rows in table.groupby("model", sort=False):
        chosen = f"layer {rows['layer'].iloc[0]} of 0-{rows['n_layers'].iloc[0] - 1}"
        lines.append(_Line(True, (str(model), "", chosen, *[""] * (len(READOUTS) + 1))))
        for row in rows.to_dict("records"):
            lo, hi = _digits(row["auroc_lo"]), _digits(row["auroc_hi"])
            at_best = _digits(row["auroc"])
            lines.append(_Line(False, (
                row["eval_set"] if row["held_out"] else "in-distribution",
                f"{row['n_pos']}/{row['n_neg']}",
                at_best if math.isnan(row["auroc_lo"]) else f"{at_best} [{lo}, {hi}]",
                *(_digits(row[name]) for name in (*READOUTS, "tfidf")),
            )))  # fmt: skip
    return lines


def _digits(auroc: float) -> str:
    """.987, 1.000, or a dash where there is none."""
    return "–" if math.isnan(auroc) else f"{auroc:.3f}".removeprefix("0")
