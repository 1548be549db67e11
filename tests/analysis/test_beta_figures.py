"""Betas and chains: what is drawn and printed is what the tables say."""

from __future__ import annotations

import io
import math

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from analysis import betas, chains, pareto, results
from analysis.beta_rows import BetaRow
from analysis.chain_rows import ChainRow
from analysis.figures import beta_controller, beta_pareto, chain_drift
from analysis.rows import EvaluationRow
from tests.analysis.synthetic import frame

SETTING = ("mixed", 0.09, 3e-3)
GRID = {
    "none": (0.9, 1.0), "adaptive-kl": (0.85, 0.05), "adaptive-kl-0.1-1": (0.8, 0.0),
    "adaptive-kl-0.3-0.9": (0.7, 0.02), "anchored": (0.86, 0.0), "anchored-0.3-1": (0.6, 0.0),
    "adaptive-kl-auto-0.1": (0.9, 0.3),
}  # fmt: skip
"""Arm -> new task and attack success."""


def evaluations(seeds: int = 2) -> pd.DataFrame:
    rows = [
        EvaluationRow("m", arm, "none" if arm == "none" else "probe", *SETTING, seed, metric,
                      value, max(0.0, value - 0.05), min(1.0, value + 0.05), 100)
        for arm, shares in GRID.items()
        for seed in range(seeds)
        for metric, value in zip((betas.MORE, betas.LESS), shares, strict=True)
    ]  # fmt: skip
    for metric, value in ((betas.MORE, 0.02), (betas.LESS, 0.0)):
        rows.append(
            EvaluationRow("m", "before", "none", "none", math.nan, math.nan, 0, metric, value, 0.0,
                          0.1, 100)
        )  # fmt: skip
    return frame(rows)


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("adaptive-kl", "0.1-0.9"), ("adaptive-kl-0.02-1", "0.02-1"), ("anchored", "0.02-1"),
        ("anchored-0.3-0.5", "0.3-0.5"), ("adaptive-kl-auto-0.03", "budget 0.03"),
    ],
)  # fmt: skip
def test_an_arms_name_says_its_betas(name: str, label: str) -> None:
    found = betas.setting(name)
    assert found is not None and found.label == label
    assert found.sharpened == name.startswith("anchored")


def test_other_arms_are_left_out() -> None:
    for name in ("anchored+anchors", "constant-kl-0.5", "adaptive-kl-batch", "reweight"):
        assert betas.setting(name) is None


def test_the_front_is_of_the_settings_and_not_of_plain_fine_tuning() -> None:
    table = betas.compared(evaluations()).set_index("defence")
    ours = table.drop(index=["before", "none"])
    wanted = pareto.front(ours[betas.MORE], ours[betas.LESS])
    assert ours["front"].tolist() == wanted.tolist()
    assert set(table.index[table["front"]]) == {"anchored", "adaptive-kl-auto-0.1"}
    assert not table.loc[["before", "none"], "front"].any()
    assert table.loc["adaptive-kl", betas.MORE] == pytest.approx(0.85)


def test_the_pareto_figure_draws_each_setting_and_labels_the_front() -> None:
    table = evaluations()
    figure = beta_pareto.draw(table)
    (ax,) = figure.axes
    points = {
        (float(x), float(y))
        for line in ax.get_lines() if line.get_marker() not in ("None", "")
        for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)
    }  # fmt: skip
    assert {(round(x, 6), round(y, 6)) for x, y in points} == set(GRID.values())
    assert {text.get_text() for text in ax.texts if "-" in text.get_text()} >= {"0.02-1 sharp"}
    assert any(text.get_text() == "budget 0.1" for text in ax.texts)
    assert len(beta_pareto.plotted(table)) == len(GRID) + 1


def test_without_a_grid_there_is_no_pareto_figure() -> None:
    table = evaluations()
    few = table[table["defence"].isin(["none", "adaptive-kl", "anchored", "before"])]
    with pytest.raises(results.NothingToDraw, match="no grid over betas"):
        beta_pareto.draw(few)


def moved() -> pd.DataFrame:
    return frame([
        BetaRow("m", f"adaptive-kl-auto-{budget:g}", "probe", *SETTING, seed, step,
                math.nan if step < 3 else budget * step / 5, budget, 0.1, 1 / (step + seed + 1))
        for budget in (0.3, 0.1, math.inf)
        for seed in (0, 1)
        for step in range(1, 9)
    ])  # fmt: skip


def test_the_controller_figure_draws_drift_against_its_budget_and_beta() -> None:
    table = moved()
    above, below = beta_controller.draw(table).axes
    heights = {line.get_ydata()[0] for line in above.get_lines() if len(line.get_ydata()) == 2}
    assert heights == {0.1, 0.3}  # an endless budget has no line
    drawn = [line.get_ydata() for line in above.get_lines() if len(line.get_ydata()) == 8]
    wanted = [one["drift"].to_numpy() for _, one in table.groupby(["budget", "seed"])]
    assert len(drawn) == 6
    for one, other in zip(drawn, wanted, strict=True):
        np.testing.assert_array_equal(one, other)
    assert len(below.get_lines()) == 6  # beta_min does not move
    still = table.assign(beta_min=table["beta_max"] / 9)
    assert len(beta_controller.draw(still).axes[1].get_lines()) == 12


CHAINS = (
    ("none", "none", "none", 0.09),
    ("none", "none", "none", 0.0),
    ("adaptive-kl", "probe", "fixed", 0.09),
    ("adaptive-kl", "probe", "moving", 0.09),
)


def chain_rows(n_links: int = 2) -> pd.DataFrame:
    return frame([
        ChainRow("m", defence, critic, "mixed", harmful, 3e-3, seed,
                 reference, link, metric, value, value, value, 100)
        for i, (defence, critic, reference, harmful) in enumerate(CHAINS)
        for seed in (1, 2)
        for link in range(n_links + 1)
        for metric, value in (
            ("attack_success", (link + seed) / 10 * (i == 0)), ("new_task", link / 4),
            ("drift", link * (i + 1) / 10),
            ("incoherent", 0.0),
        )
    ])  # fmt: skip


def test_the_chain_table_is_the_mean_over_seeds() -> None:
    table = chains.chain_table(chain_rows())
    assert {line.label for line in table["line"]} == {
        "SFT", "SFT; no harmful rows", "adaptive-kl, probe; reference fixed",
        "adaptive-kl, probe; reference moving",
    }  # fmt: skip
    sft = table[(table["line"].map(lambda line: line.label) == "SFT") & (table["link"] == 2)]
    attack = sft[sft["metric"] == "attack_success"].iloc[0]
    assert attack["mean"] == pytest.approx(0.35) and attack["lo"] < 0.3 and attack["hi"] > 0.4
    written = io.StringIO()
    Console(file=written, width=120).print(chains.render(chain_rows()))
    said = written.getvalue()
    assert "m: attack success" in said and "reference moving" in said and "incoherent" not in said


def test_the_chain_figure_draws_a_line_a_chain_and_a_panel_a_measure() -> None:
    axes = chain_drift.draw(chain_rows()).axes
    assert [ax.get_title(loc="left") or ax.get_title() for ax in axes] == [
        "attack success", "new task", "drift from the first model",
    ]  # fmt: skip
    for ax in axes:
        assert len(ax.get_lines()) == len(CHAINS)
    last = [line.get_ydata()[-1] for line in axes[2].get_lines()]
    assert last == pytest.approx([0.2, 0.4, 0.6, 0.8])
    points = chain_drift.plotted(chain_rows())
    assert "incoherent" not in set(points["metric"]) and points["link"].max() == 2
    with pytest.raises(results.NothingToDraw, match="nothing was trained"):
        chain_drift.draw(chain_rows(n_links=0))


def test_two_values_at_one_link_are_refused() -> None:
    twice = pd.concat([chain_rows(), chain_rows()], ignore_index=True)
    with pytest.raises(results.TableError, match="two rows for"):
        chains.chain_table(twice)
