"""Figures of defences: what is drawn is the data; nothing is drawn of a table that lacks it."""

import io
import itertools
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from PIL import Image

from analysis import arms, defences, figures, results, style
from analysis.figures import (
    attack_by_learning_rate,
    attack_by_share,
    safety_utility,
    training_curves,
)
from tests.analysis import synthetic

EVALUATIONS = synthetic.frame(synthetic.evaluations())
STEPS = synthetic.frame(synthetic.steps(models=("m", "n"), n_steps=90))
LABELS = [arms.label(*pair) for pair in synthetic.ARMS]
SWEEPS = {
    attack_by_share: ("harmful_share", [0.03, 0.09, 0.3]),
    attack_by_learning_rate: ("learning_rate", [5e-4, 1.6e-3, 5e-3]),
}
DRAWN = [
    (safety_utility, EVALUATIONS),
    (attack_by_share, EVALUATIONS),
    (attack_by_learning_rate, EVALUATIONS),
    (training_curves, STEPS),
]


def lines(ax):
    """Label -> drawn line."""
    return {x.get_label(): x for x in ax.get_lines() if not x.get_label().startswith("_")}


def shown(ax):
    """Numbers that stand in or beside a panel."""
    return [text.get_text() for text in ax.texts if text.get_text().isdigit()]


def middle(text):
    """Of a number as it is drawn, without its leader, in pixels."""
    box = Text.get_window_extent(text)
    return (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2


def cell(table, **where):
    """The rows of one run or of several."""
    for name, value in where.items():
        table = table[table[name] == value]
    return table


def test_points_and_bars_are_the_lines_of_the_table():
    table = defences.defence_table(EVALUATIONS)
    figure = safety_utility.draw(EVALUATIONS)
    assert [ax.get_title().strip() for ax in figure.axes] == list(synthetic.MODELS)
    for ax, model in zip(figure.axes, synthetic.MODELS, strict=True):
        assert list(lines(ax)) == LABELS
        assert shown(ax) == [str(i) for i in range(len(LABELS))]
        bars = [x for x in ax.get_lines() if x.get_label().startswith("_")]
        for i, ((defence, critic), point) in enumerate(
            zip(synthetic.ARMS, lines(ax).values(), strict=True)
        ):
            rows = cell(table, model=model, defence=defence, critic=critic)
            if defence != "before":
                rows = cell(rows, attack="mixed", harmful_share=0.09, learning_rate=5e-3)
            (row,) = rows.to_dict("records")
            assert point.get_xydata().tolist() == [[row["new_task"], row["attack_success"]]]
            across, up = bars[2 * i : 2 * i + 2]
            assert list(across.get_xdata()) == [row["new_task_lo"], row["new_task_hi"]]
            assert list(up.get_ydata()) == [row["attack_success_lo"], row["attack_success_hi"]]


def test_better_arms_stand_further_right_and_lower():
    """The control: in pixels, so that neither axis is turned round."""
    ax = safety_utility.draw(EVALUATIONS).axes[0]
    where = {label: line.get_transform().transform(line.get_xydata())[0]
             for label, line in lines(ax).items()}  # fmt: skip
    good, bad, idle = (where[name] for name in ("anchored, probe", "SFT", "constant-kl-.5"))
    assert good[1] < idle[1] < bad[1]
    assert idle[0] < good[0]
    np.testing.assert_allclose(ax.transAxes.inverted().transform(where["before training"]),
                               [0, 0], atol=0.1)  # fmt: skip


@pytest.mark.parametrize("module", SWEEPS)
def test_sweeps_are_the_lines_of_the_table(module):
    along, values = SWEEPS[module]
    fixed = {"harmful_share": {"learning_rate": 5e-3}, "learning_rate": {"harmful_share": 0.09}}
    table = defences.defence_table(EVALUATIONS)
    for ax, model in zip(module.draw(EVALUATIONS).axes, synthetic.MODELS, strict=True):
        drawn = lines(ax)
        assert list(drawn) == LABELS
        assert sorted(map(int, shown(ax))) == list(range(len(LABELS)))
        bands = iter(ax.collections)
        for (defence, critic), line in zip(synthetic.ARMS, drawn.values(), strict=True):
            rows = cell(table, model=model, defence=defence, critic=critic)
            if defence == "before":
                assert set(line.get_ydata()) == set(rows["attack_success"])
                assert list(line.get_xdata()) == [0, 1]  # Across, in parts of the panel.
                continue
            rows = cell(rows, attack="mixed", **fixed[along]).sort_values(along)
            assert list(line.get_xdata()) == values
            assert list(line.get_ydata()) == rows["attack_success"].tolist()
            corners = next(bands).get_paths()[0].vertices[:, 1]
            assert set(corners) == {*rows["attack_success_lo"], *rows["attack_success_hi"]}
        assert ax.get_xscale() == ("log" if along == "learning_rate" else "linear")


def test_a_model_without_a_sweep_has_no_panel():
    table = EVALUATIONS[
        (EVALUATIONS["model"] != "miniature/phi3") | (EVALUATIONS["learning_rate"] != 5e-4)
    ]
    table = table[(table["model"] != "miniature/phi3") | (table["learning_rate"] != 1.6e-3)]
    titles = [ax.get_title().strip() for ax in attack_by_learning_rate.draw(table).axes]
    assert titles == ["miniature/llama", "microsoft/Phi-3.5-mini-instruct"]
    assert len(attack_by_share.draw(table).axes) == 3


def naive_curve(steps, arm, seeds, quantity, n_steps=90, blocks=40):
    """Middle of each block -> values of its seeds."""
    width = math.ceil(n_steps / blocks)
    found = {}
    for first in range(1, n_steps + 1, width):
        block = [row for row in steps if (row.defence, row.critic) == arm and row.model == "m"]
        block = [row for row in block if first <= row.step < first + width]
        found[first + (width - 1) / 2] = [
            np.mean([getattr(row, quantity) for row in block if row.seed == seed]) for seed in seeds
        ]
    return found


def test_curves_are_means_of_blocks_then_of_seeds_with_students_band():
    rows = synthetic.steps(models=("m",), n_steps=90)
    figure = training_curves.draw(synthetic.frame(rows))
    assert len(figure.axes) == 2
    trained = list(synthetic.ARMS)[1:]
    for ax, quantity in zip(figure.axes, ("nll", "kl"), strict=True):
        drawn = ax.get_lines()
        assert len(drawn) == len(trained)
        for arm, line, band in zip(trained, drawn, ax.collections, strict=True):
            want = naive_curve(rows, arm, (0, 1, 2), quantity)
            np.testing.assert_allclose(line.get_xdata(), list(want))
            np.testing.assert_allclose(line.get_ydata(), [np.mean(v) for v in want.values()])
            half = [4.302652730 * np.std(v, ddof=1) / math.sqrt(3) for v in want.values()]
            top = max(np.mean(v) + h for v, h in zip(want.values(), half, strict=True))
            assert band.get_paths()[0].vertices[:, 1].max() == pytest.approx(top)
    # The control: SFT leaves the reference, the anchored arm stays.
    sft, anchored = (figure.axes[1].get_lines()[trained.index(arm)].get_ydata()[-1]
                     for arm in (("none", "none"), ("anchored", "probe")))  # fmt: skip
    assert sft > 10 * anchored


def test_short_runs_are_not_blocked_and_models_of_different_length_share_a_figure():
    rows = synthetic.steps(models=("m",), n_steps=30)
    rows += synthetic.steps(models=("n",), n_steps=400)
    points = training_curves.plotted(synthetic.frame(rows))
    assert points.loc[points["model"] == "m", "step"].unique().tolist() == list(range(1, 31))
    assert points.loc[points["model"] == "n", "step"].nunique() == training_curves.BLOCKS


def test_an_unmeasured_kl_is_absent_and_a_single_seed_has_no_band():
    table = STEPS[STEPS["seed"] == 0].copy()
    table.loc[table["defence"] == "none", "kl"] = np.nan
    upper, _, lower, _ = training_curves.draw(table).axes
    assert len(upper.get_lines()) == 7
    assert len(lower.get_lines()) == 6
    assert "1" in shown(upper)
    assert "1" not in shown(lower)
    for band in upper.collections:
        assert not band.get_paths() or np.isnan(band.get_paths()[0].vertices).all()


def test_single_seeds_have_the_interval_of_their_prompts():
    rows = synthetic.evaluations(models=("m",), seeds=(7,))
    ax = safety_utility.draw(synthetic.frame(rows)).axes[0]
    bars = [x for x in ax.get_lines() if x.get_label().startswith("_")]
    sft = next(r for r in rows if r.defence == "none" and r.metric == "new_task"
               and (r.harmful_share, r.learning_rate) == (0.09, 5e-3))  # fmt: skip
    assert list(bars[2].get_xdata()) == [sft.lo, sft.hi]


def test_an_undefined_share_is_absent_and_not_zero():
    rows = [
        replace(r, value=math.nan, lo=math.nan, hi=math.nan)
        if r.critic == "label" and r.metric == "attack_success"
        else r
        for r in synthetic.evaluations(models=("m",))
    ]
    table = synthetic.frame(rows)
    for module in (safety_utility, *SWEEPS):
        drawn = lines(module.draw(table).axes[0])
        assert list(drawn) == [label for label in LABELS if label != "adaptive-kl, label"]


LACKING = {
    "no trained model": EVALUATIONS[EVALUATIONS["defence"] == "before"],
    "no attack": EVALUATIONS[EVALUATIONS["metric"] != "attack_success"],
    "no value": EVALUATIONS.assign(value=math.nan),
}


@pytest.mark.parametrize("case", LACKING)
def test_what_a_figure_lacks_is_said_and_the_figure_is_passed_over(case, tmp_path):
    for module in (safety_utility, *SWEEPS):
        with pytest.raises(results.NothingToDraw, match="column"):
            module.draw(LACKING[case])
    assert figures.redraw({"evaluations": LACKING[case]}, tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_each_figure_is_drawn_if_its_own_part_is_there(tmp_path):
    one = cell(EVALUATIONS, model="miniature/llama", attack="mixed", learning_rate=5e-3)
    parts = {
        ("attack_by_share", "safety_utility"): one,
        ("safety_utility",): one[one["harmful_share"] == 0.09],
        ("attack_by_share",): one[one["metric"] != "new_task"],
    }
    for names, part in parts.items():
        pictures = figures.redraw({"evaluations": part}, tmp_path)
        assert tuple(path.stem for path in pictures) == names
    with pytest.raises(results.NothingToDraw, match="nll and kl"):
        training_curves.draw(STEPS.assign(nll=np.nan, kl=np.nan))


def test_broken_tables_are_named():
    for module, table in DRAWN:
        with pytest.raises(results.TableError, match="two rows for model"):
            module.draw(pd.concat([table, table]))
    with pytest.raises(results.TableError, match="no share"):
        safety_utility.draw(EVALUATIONS.assign(value=EVALUATIONS["value"] + 1))


@pytest.mark.parametrize("module, table", DRAWN)
def test_every_picture_has_its_labels_inside(module, table):
    with style.context():
        buffer = io.BytesIO()
        module.draw(table).savefig(buffer, dpi=60)
    grey = np.asarray(Image.open(buffer).convert("L"))
    rim = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    assert rim.min() > 250, module.__name__
    assert grey.min() < 60


def test_twenty_arms_have_twenty_numbers_that_do_not_overlap():
    many = synthetic.frame(synthetic.evaluations(models=("m", "n"), arms=synthetic.MANY_ARMS))
    steps = synthetic.frame(
        synthetic.steps(models=("m", "n"), arms=synthetic.MANY_ARMS, n_steps=20, seeds=(0, 1))
    )
    for module, table in [(safety_utility, many), *((s, many) for s in SWEEPS),
                          (training_curves, steps)]:  # fmt: skip
        with style.context():
            figure = module.draw(table)
            FigureCanvasAgg(figure).draw()
            for ax in figure.axes:
                texts = [text for text in ax.texts if text.get_text().isdigit()]
                assert len(texts) == 20 - (module is training_curves)
                middles = [middle(text) for text in texts]
                nearest = min(math.dist(a, b) for a, b in itertools.combinations(middles, 2))
                assert nearest * 72 / figure.dpi > 7, module.__name__
            (legend,) = figure.legends
            assert len(legend.get_texts()) == 20 - (module is training_curves)


def test_where_no_kl_was_measured_there_is_no_panel_of_it():
    table = STEPS.assign(kl=np.nan)
    assert len(training_curves.draw(table).axes) == len(training_curves.draw(STEPS).axes) / 2
    one = STEPS.copy()
    one.loc[one["model"] == one["model"].iloc[0], "kl"] = np.nan
    assert len(training_curves.draw(one).axes) == len(training_curves.draw(STEPS).axes)
