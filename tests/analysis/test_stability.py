"""Stability: spikes and spreads against the textbook, done by hand; what is drawn is the data."""

import io
import math
import statistics
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from PIL import Image
from rich.console import Console

from analysis import figures, results, stability, style
from analysis.figures import cost, loss_curves
from analysis.figures import stability as picture
from tests.analysis import synthetic

T3 = 4.302652730
"""97.5 % point of Student's t with two degrees of freedom."""
ARMS = {arm: synthetic.ARMS[arm] for arm in [*synthetic.ARMS][:4]}
ROWS = synthetic.steps(models=("m", "org/n_1"), arms=ARMS, n_steps=60)
STEPS = synthetic.frame(ROWS)
RUN = [*stability.RUN, "seed"]


def table_of(norms, seed=0, defence="none", nll=1.0):
    """One run with these gradient norms."""
    return pd.DataFrame({
        "model": "m", "defence": defence, "critic": "none", "attack": "mixed",
        "harmful_share": 0.09, "learning_rate": 5e-3, "seed": seed,
        "step": range(1, len(norms) + 1), "loss": 1.0, "nll": nll, "kl": math.nan,
        "risk": math.nan, "beta": 0.0, "grad_norm": np.array(norms, dtype=float),
    })  # fmt: skip


def naive(norms):
    """r_t of one run, step by step."""
    found = []
    for t, norm in enumerate(norms):
        past = [g for g in norms[max(0, t - 25) : t] if math.isfinite(g)]
        if len(past) < 10:
            found.append(math.nan)
        else:
            found.append(norm / statistics.median(past) if math.isfinite(norm) else math.inf)
    return found


NORM = st.floats(1e-3, 1e3) | st.sampled_from([math.nan, math.inf])


@given(st.lists(st.lists(NORM, max_size=60), min_size=1, max_size=3), st.randoms())
@settings(deadline=None, max_examples=60)
def test_a_step_is_held_against_the_median_of_its_own_runs_past(runs, random):
    table = pd.concat([table_of(norms, seed) for seed, norms in enumerate(runs)])
    table = table.reset_index(drop=True)
    order = [*table.index]
    random.shuffle(order)
    found = stability.ratios(table.loc[order]).reindex(table.index)
    np.testing.assert_allclose(found, [r for norms in runs for r in naive(norms)])


@given(st.floats(1e-4, 1e4))
@settings(deadline=None, max_examples=20)
def test_a_losss_scale_does_not_matter(scale):
    norms = np.exp(np.random.default_rng(0).normal(0, 1, 60))
    one, other = (stability.ratios(table_of(norms * times)) for times in (1, scale))
    np.testing.assert_allclose(one, other)


def smooth(n=100):
    """Falls tenfold, as a run that learns."""
    return np.geomspace(5, 0.5, n)


def spikes(norms):
    return stability.runs(table_of(norms))["spikes"].item()


def test_what_was_planted_is_found_and_nothing_else():
    norms = smooth()
    assert spikes(norms) == 0  # the control
    planted = norms.copy()
    planted[[30, 31, 70]] *= 5
    table = table_of(planted)
    assert [*np.flatnonzero(stability.ratios(table) > stability.TIMES)] == [30, 31, 70]
    assert spikes(planted) == pytest.approx(3 / 90)
    below = norms.copy()
    below[[30, 31, 70]] *= 2
    assert spikes(below) == 0
    early = norms.copy()
    early[3] *= 100
    assert spikes(early) == 0  # in the first ten steps, which nothing stands before
    lost = norms.copy()
    lost[50], lost[60] = math.nan, math.inf
    assert spikes(lost) == pytest.approx(2 / 90)


def test_what_lasts_is_a_spike_at_its_beginning_alone():
    norms = np.ones(100)
    norms[50:] = 10
    assert [*np.flatnonzero(stability.ratios(table_of(norms)) > 3)] == [*range(50, 63)]


def test_a_rough_run_has_spikes_that_its_own_deviation_would_hide():
    """The reason for the median: a run that is rough throughout has a large deviation."""
    rng = np.random.default_rng(0)
    rough = np.exp(rng.normal(0, 1, 400))
    calm = np.exp(rng.normal(0, 0.1, 400))
    past = pd.Series(rough).shift().rolling(128)
    assert not (rough > past.mean() + 6 * past.std()).sum() > 4
    assert spikes(rough) > 0.1
    assert spikes(calm) == 0


def test_each_line_is_its_seeds_by_hand():
    table = stability.stability_table(STEPS).set_index(["model", "defence", "critic"])
    assert len(table) == 2 * 3
    for (model, defence, critic), line in table.iterrows():
        of_seeds, curves = [], []
        for seed in (0, 1, 2):
            run = [r for r in ROWS if (r.model, r.defence, r.critic, r.seed)
                   == (model, defence, critic, seed)]  # fmt: skip
            found = [r for r in naive([row.grad_norm for row in run]) if not math.isnan(r)]
            of_seeds.append((sum(r > 3 for r in found) / 50, max(found),
                             statistics.fmean(row.nll for row in run[-6:])))  # fmt: skip
            nll = [row.nll for row in run]
            # 60 steps in 40 parts of one and a half: one step, two steps, one, two.
            curves.append([
                statistics.fmean(part)
                for i in range(0, 60, 3) for part in (nll[i : i + 1], nll[i + 1 : i + 3])
            ])  # fmt: skip
        shares, largest, nll = zip(*of_seeds, strict=True)
        assert line["spikes"] == pytest.approx(statistics.fmean(shares))
        if len({*shares}) > 1:
            half = T3 * statistics.stdev(shares) / math.sqrt(3)
            assert line["spikes_hi"] == pytest.approx(min(1, line["spikes"] + half))
        assert line["largest"] == pytest.approx(max(largest))
        assert line["nll"] == pytest.approx(statistics.fmean(nll))
        variances = [statistics.variance(part) for part in zip(*curves, strict=True)]
        assert line["spread"] == pytest.approx(math.sqrt(statistics.fmean(variances)))
        assert line["seeds"] == 3


def test_seeds_that_agree_have_no_spread_and_a_single_one_has_none_to_tell():
    agree = pd.concat([table_of(smooth(), seed) for seed in (1, 2, 3)])
    line = stability.stability_table(agree).iloc[0]
    assert line["spread"] == 0 == line["spikes"]
    apart = pd.concat([table_of(smooth(), seed, nll=1.0 + 0.1 * seed) for seed in (1, 2, 3)])
    assert stability.stability_table(apart).iloc[0]["spread"] == pytest.approx(0.1)
    assert math.isnan(stability.stability_table(table_of(smooth())).iloc[0]["spread"])


def test_the_spread_of_the_evaluations_is_their_standard_deviation_over_seeds():
    evaluations = synthetic.evaluations(models=("m",), arms=ARMS, settings=[("mixed", 0.09, 5e-3)])
    table = stability.stability_table(STEPS, synthetic.frame(evaluations))
    for line in table.to_dict("records"):
        for metric in stability.OVER_SEEDS:
            values = [r.value for r in evaluations if r.metric == metric
                      and (r.model, r.defence, r.critic)
                      == (line["model"], line["defence"], line["critic"])]  # fmt: skip
            found = line[f"{metric}_spread"]
            assert math.isnan(found) if not values else found == pytest.approx(
                statistics.stdev(values)
            )  # fmt: skip
    assert table["new_task_spread"].notna().any()


def test_a_defence_is_held_against_sft_seed_by_seed():
    norms = {seed: smooth() for seed in (1, 2, 3)}
    for seed, n in ((1, 2), (2, 5), (3, 8)):
        norms[seed][40 : 40 + n] *= 5
    plain = [table_of(one, seed) for seed, one in norms.items()]
    same = [table_of(3 * one, seed, "scaled") for seed, one in norms.items()]
    better = [table_of(smooth(), seed, "better") for seed in norms]
    found = stability.against_sft(pd.concat([*plain, *same, *better])).set_index("defence")
    assert found.loc["scaled", ["n", "mean"]].tolist() == [3, 0]
    assert found.loc["better", "mean"] == pytest.approx(-5 / 90)
    half = T3 * (3 / 90) / math.sqrt(3)
    assert found.loc["better", "hi"] == pytest.approx(-5 / 90 + half)
    with pytest.raises(results.NothingToDraw, match="plain fine-tuning"):
        stability.against_sft(pd.concat(same))


def test_markdown_latex_and_terminal_hold_the_same_cells():
    evaluations = synthetic.frame(synthetic.evaluations(models=("m",), arms=ARMS))
    table = stability.stability_table(STEPS, evaluations)
    markdown, latex = (form(STEPS, evaluations) for form in (stability.markdown, stability.latex))
    console = Console(file=io.StringIO(), width=100)
    console.print(stability.render(STEPS, evaluations))
    printed = console.file.getvalue()
    for row in table.to_dict("records"):
        for cell in (f"{row['largest']:.1f}", f"{row['nll']:.3f}", f"{row['spread']:.3f}"):
            assert f"| {cell} |" in markdown
            assert f"& {cell} &" in latex
            assert f" {cell} " in printed
    assert max(map(len, printed.splitlines())) <= 100
    assert r"org/n\_1" in latex and r"9 \% harmful" in latex
    bodies = [line for line in latex.splitlines() if line.endswith(r"\\")]
    assert {line.count(" & ") for line in bodies} == {6, 2}
    assert latex.count(r"\begin{table}") == latex.count(r"\end{table}") == 3
    assert markdown.count("minus SFT's (points)") == 1


def test_what_cannot_be_judged_is_said():
    for broken in (table_of(np.ones(10)), table_of([math.nan] * 60)):
        with pytest.raises(results.NothingToDraw, match="grad_norm"):
            stability.stability_table(broken)
        with pytest.raises(results.NothingToDraw):
            picture.draw(broken)
    with pytest.raises(results.TableError, match="two rows for model"):
        stability.stability_table(pd.concat([STEPS, STEPS]))


def test_points_are_the_lines_of_the_table():
    table = stability.stability_table(STEPS)
    of_runs = stability.runs(STEPS)
    figure = picture.draw(STEPS)
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels == ["SFT", "constant-kl-.5", "adaptive-kl, probe"]
    for ax, measure in zip(figure.axes, picture.MEASURES, strict=True):
        drawn = [line for line in ax.get_lines() if line.get_marker() != "None"]
        for line, model in zip(drawn, ("m", "org/n_1"), strict=True):
            of_model = table[table["model"] == model]
            want = of_model[measure]
            if measure == "largest":
                medians = of_runs[of_runs["model"] == model].groupby(["defence"], sort=False)
                want = medians["largest"].median()
            np.testing.assert_allclose(line.get_xdata(), want)
            assert [round(y) for y in line.get_ydata()] == [0, 1, 2]
        # Plain fine-tuning's is drawn across.
        across = [line.get_xdata()[0] for line in ax.get_lines() if line.get_ls() == ":"]
        np.testing.assert_allclose(across, [line.get_xdata()[0] for line in drawn])


def test_each_arm_has_its_curves_seed_by_seed_and_a_tick_for_each_spike():
    table = STEPS.copy()
    at = (table["seed"] == 1) & (table["step"] == 40) & (table["defence"] == "adaptive-kl")
    table.loc[at, "grad_norm"] *= 50
    figure = loss_curves.draw(table)
    assert [ax.get_title() for ax in figure.axes] == ["SFT", "constant-kl-.5", "adaptive-kl, probe"]
    ratios = stability.ratios(table)
    for ax, defence in zip(figure.axes, ("none", "constant-kl-.5", "adaptive-kl"), strict=True):
        lines = ax.get_lines()
        ticks = [line for line in lines if line.get_marker() == "|"]
        curves = [line for line in lines if line.get_marker() == "None" and line.get_ls() == "-"]
        assert len(curves) == 2 * 3
        first = table[
            (table["defence"] == defence) & (table["model"] == "m") & (table["seed"] == 0)
        ]
        nll = first["nll"].tolist()
        want = [statistics.fmean(nll[i : i + 2]) for i in range(0, 60, 2)]
        np.testing.assert_allclose(curves[0].get_ydata(), want, atol=1e-5)
        np.testing.assert_allclose(
            curves[0].get_xdata(), [(i + 1.5) / 60 for i in range(0, 60, 2)], atol=1e-4
        )
        found = ratios[(table["defence"] == defence) & (ratios > stability.TIMES)]
        assert sum(len(line.get_xdata()) for line in ticks) == len(found)
    assert len(figure.axes[2].get_lines()) and (ratios > 20).sum() == 2


def titles(figure):
    """Of the panels."""
    found = {ax.get_title(loc="left") for ax in figure.axes}
    return figure.findobj(lambda artist: isinstance(artist, Text) and artist.get_text() in found)


def test_twenty_arms_have_their_labels_inside_and_apart():
    many = synthetic.frame(
        synthetic.steps(models=("m", "n"), arms=synthetic.MANY_ARMS, n_steps=30, seeds=(0, 1))
    )
    for module in (picture, loss_curves):
        with style.context():
            figure = module.draw(many)
            FigureCanvasAgg(figure).draw()
            texts = [*figure.legends[0].get_texts(), *(ax.xaxis.label for ax in figure.axes)]
            texts += titles(figure) if module is loss_curves else figure.axes[0].get_yticklabels()
            boxes = [text.get_window_extent() for text in texts if text.get_text()]
            buffer = io.BytesIO()
            figure.savefig(buffer, dpi=60)
        assert len(boxes) > 20
        for i, one in enumerate(boxes):
            assert not any(one.overlaps(other) for other in boxes[i + 1 :]), module.__name__
        grey = np.asarray(Image.open(buffer).convert("L"))
        rim = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
        assert rim.min() > 250, module.__name__


@pytest.mark.parametrize("n", [1, 2])
def test_a_few_arms_have_room_too(n):
    arms = dict(list(synthetic.ARMS.items())[: n + 1])
    few = synthetic.frame(synthetic.steps(models=synthetic.MODELS, arms=arms, n_steps=15))
    with warnings.catch_warnings(), style.context():
        warnings.simplefilter("error")  # as of a layout that has collapsed
        for module in (picture, loss_curves):
            module.draw(few).savefig(io.BytesIO(), dpi=60)
        cost.draw(synthetic.frame(synthetic.costs(arms=arms))).savefig(io.BytesIO(), dpi=60)


def test_a_single_seed_has_no_panel_of_the_spread():
    one = STEPS[STEPS["seed"] == STEPS["seed"].iloc[0]]
    with warnings.catch_warnings(), style.context():
        warnings.simplefilter("error")
        figure = picture.draw(one)
        figure.savefig(io.BytesIO(), dpi=60)
    assert len(figure.axes) == 2 and len(picture.draw(STEPS).axes) == 3


def test_both_are_drawn_of_the_table_of_steps(tmp_path):
    pictures = figures.redraw({"steps": STEPS}, tmp_path)
    assert {path.stem for path in pictures} == {"loss_curves", "stability", "training_curves"}
    assert len(pd.read_csv(tmp_path / "stability.csv")) == 6 * 3
