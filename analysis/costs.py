"""The table of costs: what each defence takes beside plain fine-tuning."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd
from rich.console import Group

from analysis import arms, typeset

HEAD = ("defence, critic", "time of a step", "peak memory", "passes of a step", "before",
        "passes before", "after", "passes after", "whole training")  # fmt: skip
CAPTION = (
    "time of a step ({clock}): over that of plain fine-tuning (SFT), ratio of medians over rounds "
    "[95 % interval]; peak memory of the steps above model and data, likewise: {memory}; passes of "
    "a step: tokens that go forward through a model, over SFT's; before, after: what comes before "
    "the first step and after the last one, percent of the time of SFT's training; passes before, "
    "after: tokens over those of the training data; whole training: all together, over SFT's. The "
    "line of SFT is another SFT: by what it differs from it is chance."
)
MEMORY = {
    "resident": "what of the process was resident",
    "cuda": "what torch's allocator held on the GPU",
    "none": "not measured here",
}
CLOCK = {"wall": "by the wall's clock", "processor": "of the processor"}


def cost_table(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows, with `whole` (and its ends `whole_lo`, `whole_hi`, of the steps alone).

    whole = time_ratio * steps + before + after, in trainings of plain fine-tuning.
    """
    aside = rows["before"] + rows["after"]
    whole = {
        f"whole{end}": rows[f"time_ratio{end}"] * rows["steps"] + aside
        for end in ("", "_lo", "_hi")
    }
    return rows.assign(**whole)


def render(rows: pd.DataFrame) -> Group:
    """For a terminal."""
    return Group(
        *(typeset.terminal(HEAD, _lines(of), str(model)) for model, of in _models(rows)),
        *_failed(rows),
        _caption(rows),
    )


def markdown(rows: pd.DataFrame) -> str:
    """As GitHub's Markdown."""
    tables = [
        f"**{model}**\n\n{typeset.markdown(HEAD, _lines(of))}" for model, of in _models(rows)
    ]  # fmt: skip
    return "\n".join([*tables, *(f"{line}\n" for line in _failed(rows)), f"{_caption(rows)}\n"])


def latex(rows: pd.DataFrame) -> str:
    """For a paper; needs booktabs."""
    return "\n".join(
        typeset.latex(HEAD, _lines(of), f"{model}. {_caption(rows)}") for model, of in _models(rows)
    )


def _models(rows: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    measured = cost_table(rows[rows["failed"] == ""])
    return [(str(model), of) for model, of in measured.groupby("model", sort=False)]


def _lines(table: pd.DataFrame) -> list[list[str]]:
    return [
        [
            arms.label(row["defence"], row["critic"]),
            f"{row['time_ratio']:.2f} [{row['time_ratio_lo']:.2f}, {row['time_ratio_hi']:.2f}]",
            *_shown([row["memory_ratio"], row["step_passes"]]),
            f"{100 * row['before']:.1f}", *_shown([row["before_passes"]]),
            f"{100 * row['after']:.1f}", *_shown([row["after_passes"], row["whole"]]),
        ]
        for row in table.to_dict("records")
    ]  # fmt: skip


def _shown(numbers: Sequence[float]) -> list[str]:
    return ["–" if math.isnan(number) else f"{number:.2f}" for number in numbers]


def _failed(rows: pd.DataFrame) -> list[str]:
    return [
        f"{row['model']}, {row['defence']}: not measured: {row['failed']}"
        for row in rows[rows["failed"] != ""].to_dict("records")
    ]


def _caption(rows: pd.DataFrame) -> str:
    memory, clock = rows["memory"].iloc[0], rows["clock"].iloc[0]
    return CAPTION.format(memory=MEMORY.get(memory, memory), clock=CLOCK.get(clock, clock))
