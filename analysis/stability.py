"""How stable training is: spikes of the gradient norm, and how far seeds lie apart.

A step t is a spike if its gradient norm (before clipping) is more than three times its running
median:

    r_t = g_t / median(g_(t-25), ..., g_(t-1)) > 3

against the run's own past, for the scale of a loss (beta, alpha, a penalty) is another in every
defence, and the norm falls as a run learns. Only steps before t count, as the optimizer knows no
others: what lasts is a spike at its beginning alone. The first ten steps, the warm-up of the usual
recipes, have no past to be compared with and are not judged. A norm that is not finite is a spike.

Others judge so too, with other measures of the past: OLMo-core's stability monitor takes steps more
than 6 standard deviations above the mean of the last 128, SPAM (arXiv 2501.06842) entries more than
50 times their mean over the run. A fine-tuning of 150 steps has no 128 to begin with, spikes raise
the mean and the deviation that later ones are held against, and a run that is rough throughout has
so large a deviation that none of its steps sticks out: just what should be told. The median does
not move for a few spikes, and a multiple of it means the same in a rough run and in a smooth one.

Not all that is a spike is a fault. Steps of other rows make them (`lisa` takes turns between two
data sets) or of fewer rows (an epoch's last), and so does success: of a run that has learnt its
data nothing is left but the gradient of a few hard rows, while a KL or a penalty that pulls at
every step lets no norm fall to nothing. So read spikes beside the NLL at the end, and a defence
beside plain fine-tuning on the same data, seed by seed (`against_sft`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from rich.console import Group

from analysis import arms, results, seeds, typeset
from analysis.defences import RUN

WINDOW = 25
"""Steps that the running median is over."""
LEAST = 10
"""Fewest of them: earlier steps are not judged."""
TIMES = 3.0
"""A spike is more than so many times the running median."""
END = 0.1
"""Share of the steps that are the end of a run."""
BLOCKS = 40
"""Parts of a run that seeds are compared in."""
OVER_SEEDS = ("attack_success", "new_task")
"""Metrics of an evaluation whose spread over seeds stands beside."""
SFT = ("none", "none")
CAPTION = (
    f"spikes: steps (%) whose gradient norm is more than {TIMES:g} times the median of the "
    f"{WINDOW} steps before, mean over seeds [95 % interval]; largest: the highest multiple of any "
    "seed; NLL: of the last tenth of the steps (nats per answer token); spread: standard deviation "
    "over seeds of the NLL, over the run (nats), of attack success and of the new task (percent)."
)
HEAD = ("defence, critic", "spikes", "largest", "NLL", "spread NLL", "spread attack success",
        "spread new task")  # fmt: skip
AGAINST = ("defence, critic", "runs", "minus SFT's (points)")


def ratios(steps: pd.DataFrame) -> pd.Series:
    """r_t of each row: the gradient norm over the median of the norms of the steps before.

    NaN for the first `LEAST` steps of a run, and where no norm of a run was measured.

    Raises:
        TableError: a run has two rows of one step.
    """
    run = [*RUN, "seed"]
    results.unique(steps, [*run, "step"])
    ordered = steps.reset_index(drop=True).sort_values("step", kind="stable")
    norms = ordered["grad_norm"].replace([-np.inf, np.inf], np.nan)
    of_run = norms.groupby([ordered[name] for name in run], sort=False, dropna=False)
    past = of_run.transform(lambda g: g.shift().rolling(WINDOW, min_periods=LEAST).median())
    lost = norms.isna() & past.notna()
    found = (norms / past).mask(lost, np.inf).sort_index()
    return found.set_axis(steps.index).rename("ratio")


def runs(steps: pd.DataFrame) -> pd.DataFrame:
    """One row a run and seed: judged (steps), spikes (share of them), largest (r_t), nll (at end).

    Raises:
        NothingToDraw: no run has a gradient norm that can be judged.
    """
    rows = steps.assign(ratio=ratios(steps))
    rows["judged"] = rows["ratio"].notna()
    if not rows["judged"].any():
        raise results.NothingToDraw(
            f"column grad_norm: no run of more than {LEAST} steps has any"
        )  # fmt: skip
    rows["spike"] = (rows["ratio"] > TIMES).astype(float).where(rows["judged"])
    run = [*RUN, "seed"]
    last = rows.groupby(run, sort=False, dropna=False)["step"].transform("max")
    rows["end"] = rows["nll"].where(rows["step"] > (1 - END) * last)
    found = rows.groupby(run, sort=False, dropna=False).agg(
        judged=("judged", "sum"), spikes=("spike", "mean"), largest=("ratio", "max"),
        nll=("end", "mean"),
    )  # fmt: skip
    return found.reset_index()


def spread(steps: pd.DataFrame) -> pd.DataFrame:
    """How far the seeds' curves of the NLL lie apart: one row a run, `spread` (nats).

    Root mean square, over `BLOCKS` parts of the run, of the standard deviation over seeds of the
    part's mean NLL; NaN for a single seed. The batches' own noise is in it, the same for all
    defences that train on the same rows.
    """
    width = steps.groupby(RUN, sort=False, dropna=False)["step"].transform("max") / BLOCKS
    block = np.ceil(steps["step"] / width.clip(lower=1))
    means = steps.assign(block=block).groupby(
        [*RUN, "block", "seed"], sort=False, dropna=False
    )["nll"].mean()  # fmt: skip
    variance = means.groupby([*RUN, "block"], sort=False, dropna=False).var()
    found = variance.groupby(RUN, sort=False, dropna=False).mean() ** 0.5
    return found.rename("spread").reset_index()


def stability_table(steps: pd.DataFrame, evaluations: pd.DataFrame | None = None) -> pd.DataFrame:
    """One line a model, attack, harmful share, learning rate, defence and critic.

    Columns: these, `seeds`, `spikes` with Student's 95 % interval over seeds (`spikes_lo`,
    `spikes_hi`; NaN of seeds that agree), `largest` of any seed, `nll` at the end, `spread` of the
    NLL, and METRIC_spread of `OVER_SEEDS`: the standard deviation over seeds, as a share; NaN where
    there are no evaluations, or one seed.

    Raises:
        NothingToDraw: no run has a gradient norm that can be judged.
        TableError: a run has two rows of one step.
    """
    of_seeds = runs(steps)
    groups = of_seeds.groupby(RUN, sort=False, dropna=False)
    table = groups.agg(
        seeds=("seed", "nunique"), largest=("largest", "max"), nll=("nll", "mean")
    ).reset_index()  # fmt: skip
    long = of_seeds.rename(columns={"spikes": "value"}).assign(lo=np.nan, hi=np.nan)
    means = seeds.over_seeds(long, RUN).rename(
        columns={"mean": "spikes", "lo": "spikes_lo", "hi": "spikes_hi"}
    )
    table = table.merge(means, on=RUN).merge(spread(steps), on=RUN)
    for metric in OVER_SEEDS:
        column = f"{metric}_spread"
        if evaluations is None:
            table[column] = np.nan
            continue
        rows = evaluations[evaluations["metric"] == metric]
        deviation = rows.groupby(RUN, sort=False, dropna=False)["value"].std()
        table = table.merge(deviation.rename(column).reset_index(), on=RUN, how="left")
    return table


def against_sft(steps: pd.DataFrame) -> pd.DataFrame:
    """Spikes of each arm minus those of plain fine-tuning on the same data, seed by seed.

    Returns:
        One row an arm: defence, critic, n (pairs: of models, settings and seeds), mean, lo, hi:
        the difference of the shares, with Student's 95 % interval over the pairs.

    Raises:
        NothingToDraw: plain fine-tuning, or all else, is not in the table.
    """
    same = ["model", *arms.SETTING, "seed"]
    found = runs(steps)
    plain = (found["defence"] == SFT[0]) & (found["critic"] == SFT[1])
    pairs = found[~plain].merge(found.loc[plain, [*same, "spikes"]], on=same, suffixes=("", "_sft"))
    if pairs.empty:
        raise results.NothingToDraw("column defence: nothing beside plain fine-tuning (none)")
    pairs["value"] = pairs["spikes"] - pairs["spikes_sft"]
    arm = ["defence", "critic"]
    table = seeds.over_seeds(pairs.assign(lo=np.nan, hi=np.nan), arm, bounds=(-1.0, 1.0))
    n = pairs.groupby(arm, sort=False).size().rename("n").reset_index()
    return n.merge(table, on=arm)


def render(steps: pd.DataFrame, evaluations: pd.DataFrame | None = None) -> Group:
    """For a terminal."""
    blocks = _blocks(stability_table(steps, evaluations))
    tables = [typeset.terminal(HEAD, rows, title) for title, rows in blocks]
    tables += [typeset.terminal(AGAINST, rows, title) for title, rows in _compared(steps)]
    return Group(*tables, CAPTION)


def markdown(steps: pd.DataFrame, evaluations: pd.DataFrame | None = None) -> str:
    """As GitHub's Markdown, a table for every model and setting, and what they say together."""
    parts: list[tuple[Sequence[str], str, list[list[str]]]] = [
        *((HEAD, *block) for block in _blocks(stability_table(steps, evaluations))),
        *((AGAINST, *block) for block in _compared(steps)),
    ]
    tables = [f"**{title}**\n\n{typeset.markdown(head, rows)}" for head, title, rows in parts]
    return "\n".join([*tables, f"{CAPTION}\n"])


def latex(steps: pd.DataFrame, evaluations: pd.DataFrame | None = None) -> str:
    """The same for a paper; needs booktabs."""
    tables = [
        typeset.latex(HEAD, rows, f"{title}. {CAPTION}")
        for title, rows in _blocks(stability_table(steps, evaluations))
    ]
    tables += [typeset.latex(AGAINST, rows, title) for title, rows in _compared(steps)]
    return "\n".join(tables)


def _blocks(table: pd.DataFrame) -> list[tuple[str, list[list[str]]]]:
    """A title and its lines for every model and setting."""
    cells: Sequence[tuple[str, Callable[[float], str]]] = (
        ("largest", "{:.1f}".format), ("nll", "{:.3f}".format), ("spread", "{:.3f}".format),
        *((f"{metric}_spread", _percent) for metric in OVER_SEEDS),
    )  # fmt: skip
    return [
        (
            f"{model}: {arms.setting(part)}",
            [
                [
                    arms.label(row["defence"], row["critic"]),
                    _with_interval(row["spikes"], row["spikes_lo"], row["spikes_hi"]),
                    *("–" if math.isnan(row[name]) else shown(row[name]) for name, shown in cells),
                ]
                for row in part.to_dict("records")
            ],
        )
        for (model, *_), part in table.groupby(["model", *arms.SETTING], sort=False, dropna=False)
    ]


def _compared(steps: pd.DataFrame) -> list[tuple[str, list[list[str]]]]:
    """A title and its lines, if there is anything to compare."""
    try:
        table = against_sft(steps)
    except results.NothingToDraw:
        return []
    rows = [
        [arms.label(row["defence"], row["critic"]), str(row["n"]),
         _with_interval(row["mean"], row["lo"], row["hi"])]
        for row in table.to_dict("records")
    ]  # fmt: skip
    return [("spikes beside SFT's, seed by seed", rows)]


def _with_interval(value: float, lo: float, hi: float) -> str:
    if math.isnan(value):
        return "–"
    mean = _percent(value)
    return mean if math.isnan(lo) else f"{mean} [{_percent(lo)}, {_percent(hi)}]"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
