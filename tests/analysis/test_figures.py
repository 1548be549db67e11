"""Figures: what is drawn is what the csv says; nothing undefined is drawn; all read in grey."""

import io
import itertools
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle, StepPatch
from PIL import Image

from analysis import figures, heatmaps, results, style
from analysis.figures import held_out_heatmap, layer_curves, risk_distribution
from tests.analysis import synthetic, synthetic_evidence

MODELS = ("miniature/llama", "miniature/phi3", "microsoft/Phi-3.5-mini-instruct")


def frame(rows):
    return pd.DataFrame([{name: getattr(row, name) for name in row.__slots__} for row in rows])


SCORES = frame(synthetic.scores())
RISKS = frame(synthetic.risks(n=60))


def curves(ax):
    """Label -> drawn (x, y) of the layer curves of a panel: those of several points."""
    lines = [line for line in ax.get_lines() if not line.get_label().startswith("_")]
    return {line.get_label(): line for line in lines if line.get_linestyle() != "None"}


def test_the_figures_are_there_and_none_overwrites_a_table():
    of_scores = {"layer_curves", "held_out_heatmap", "risk_distribution"}
    of_defences = {
        "safety_utility",
        "attack_by_share",
        "attack_by_learning_rate",
        "training_curves",
    }
    assert set(figures.names()) >= of_scores | of_defences
    assert not set(figures.names()) & set(results.TABLES)
    for name in figures.names():
        assert figures.load(name).TABLE in results.TABLES


def test_curves_points_and_bands_are_the_rows():
    points = layer_curves.plotted(SCORES)
    figure = layer_curves.draw(SCORES)
    assert [ax.get_title() for ax in figure.axes] == list(MODELS)
    for ax, model in zip(figure.axes, MODELS, strict=True):
        of_model = points[points["model"] == model]
        drawn = curves(ax)
        for name in (*synthetic.HELD_OUT, "miniature:train"):
            curve = of_model[(of_model["eval_set"] == name) & (of_model["readout"] == "layer")]
            np.testing.assert_array_equal(drawn[name].get_xdata(), curve["layer"])
            np.testing.assert_array_equal(drawn[name].get_ydata(), curve["auroc"])
        beside = [line for line in ax.get_lines() if line.get_linestyle() == "None"]
        got = sorted((line.get_label(), float(line.get_ydata()[0])) for line in beside)
        want = of_model[of_model["layer"] < 0]
        assert got == sorted(zip(want["eval_set"], want["auroc"], strict=True))
        # One band a set: its corners are the ends of the intervals.
        bands = [c for c in ax.collections if c.get_paths() and len(c.get_paths()[0].vertices) > 6]
        assert len(bands) == 1 + len(synthetic.HELD_OUT)
        inside = of_model[(of_model["readout"] == "layer") & ~of_model["held_out"]]
        corners = set(bands[0].get_paths()[0].vertices[:, 1])
        assert corners == {*inside["auroc_lo"], *inside["auroc_hi"]}


def test_early_and_final_layers_chance_and_pooled_are_marked():
    ax = layer_curves.draw(SCORES).axes[0]
    assert {"early", "final", "chance"} <= {text.get_text() for text in ax.texts}
    zones = [p for p in ax.patches if isinstance(p, Rectangle)]
    spans = sorted((zone.get_x(), zone.get_x() + zone.get_width()) for zone in zones)
    assert [(np.ceil(lo), np.floor(hi)) for lo, hi in spans] == [(0, 2), (4, 5)]
    across = [tuple(line.get_ydata()) for line in ax.get_lines() if len(line.get_xdata()) == 2]
    inside = SCORES[(SCORES["model"] == MODELS[0]) & ~SCORES["held_out"]]
    for readout in ("pooled-mean", "pooled-concat", *style.FLOORS):
        value = inside.loc[inside["readout"] == readout, "auroc"].iloc[0]
        assert (value, value) in across


@pytest.mark.parametrize("n_layers", [1, 2, 3, 5, 32])
def test_any_depth_is_drawn_and_zones_never_overlap(n_layers):
    figure = layer_curves.draw(frame(synthetic.scores(models=("m",), n_layers=n_layers)))
    zones = sorted((z.get_x(), z.get_x() + z.get_width()) for z in figure.axes[0].patches)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(zones))
    assert zones[0][1] <= n_layers


def test_an_undefined_auroc_is_absent_and_not_zero():
    rows = [
        replace(r, auroc=np.nan, auroc_lo=np.nan, auroc_hi=np.nan)
        if r.eval_set == "xstest" and (r.layer == 2 or r.readout == "pooled-mean")
        else r
        for r in synthetic.scores(models=("m",))
    ]
    table = frame(rows)
    ax = layer_curves.draw(table).axes[0]
    y = curves(ax)["xstest"].get_ydata()
    assert np.isnan(y).tolist() == [False, False, True, False, False, False]
    whole = layer_curves.draw(SCORES[SCORES["model"] == MODELS[0]]).axes[0]
    points, full = (
        [line for line in panel.get_lines() if line.get_linestyle() == "None"]
        for panel in (ax, whole)
    )
    assert len(points) == len(full) - 1
    assert min(float(line.get_ydata()[0]) for line in points) > 0.3
    cells = [text.get_text() for text in held_out_heatmap.draw(table).axes[0].texts]
    assert cells.count("–") == 2
    assert ".00" not in cells


def test_sets_differ_in_grey_by_more_than_colour():
    many = frame(synthetic.scores(held_out=tuple(f"set {i}" for i in range(20))))
    marks = list(style.marks(many).values())
    assert len({(mark.marker, mark.dash) for mark in marks}) == len(marks)
    few = list(style.marks(SCORES).values())
    assert len({mark.marker for mark in few}) == len(few)
    # Every colour stands off the white paper.
    for colour in style.COLOURS:
        assert np.dot(to_rgb(colour), [0.299, 0.587, 0.114]) < 0.72
    dark, pale = (np.dot(to_rgb(risk_distribution.LOOKS[label]["facecolor"]),
                         [0.299, 0.587, 0.114]) for label in (1, 0))  # fmt: skip
    assert pale - dark > 0.3


def test_heat_map_cells_are_the_rows():
    figure = held_out_heatmap.draw(SCORES)
    cells = held_out_heatmap.plotted(SCORES)
    bar = figure.axes[-1]
    assert bar.get_ylabel() == "AUROC"
    sets = list(style.evaluation_sets(cells))
    rows = ["embedding", *range(6), "pooled-mean", "pooled-concat", *style.FLOORS]
    for ax, model in zip(figure.axes, MODELS, strict=False):
        of_model = cells[cells["model"] == model]
        texts = sorted(ax.texts, key=lambda text: (text.get_position()[1], text.get_position()[0]))
        grid = np.reshape([text.get_text() for text in texts], (len(rows), len(sets)))
        for i, row in enumerate(rows):
            at = of_model["layer"] == row if isinstance(row, int) else of_model["readout"] == row
            for j, name in enumerate(sets):
                value = of_model[at & (of_model["eval_set"] == name)]
                value = value[value["readout"] != "class-mean"]["auroc"].item()
                assert float(grid[i, j]) == pytest.approx(value, abs=0.0051)


@pytest.mark.parametrize(
    "auroc, text", [(1.0, "1.0"), (0.9999, ".99"), (0.994, ".99"), (0.5, ".50"), (0.0, ".00")]
)
def test_only_a_perfect_score_is_called_perfect(auroc, text):
    assert heatmaps.two_digits(auroc) == text


def test_risk_bars_are_shares_of_each_class():
    bars = risk_distribution.plotted(RISKS)
    keys = ["model", "eval_set", "label"]
    np.testing.assert_allclose(bars.groupby(keys)["share"].sum(), 1)
    assert (bars["n"] == 30).all()
    # An independent count: risks of the classes on each side of one half (an edge of the bins).
    for (model, name, label), of_class in bars.groupby(keys):
        of_rows = RISKS[(RISKS["model"] == model) & (RISKS["eval_set"] == name)]
        above = (of_rows.loc[of_rows["label"] == label, "risk"] >= 0.5).mean()
        assert of_class.loc[of_class["bin_lo"] >= 0.4999, "share"].sum() == pytest.approx(above)
    figure = risk_distribution.draw(RISKS)
    steps = [p for p in figure.axes[0].patches if isinstance(p, StepPatch)]
    assert len(steps) == 2 * (1 + len(synthetic.HELD_OUT))
    harmful = bars[(bars["model"] == MODELS[0]) & ~bars["held_out"] & (bars["label"] == 1)]
    up = -steps[0].get_data().values
    np.testing.assert_allclose(up / up.sum(), harmful["share"])


def test_certain_risks_are_counted_in_the_outermost_bins():
    table = RISKS.assign(risk=RISKS["label"].astype(float))
    bars = risk_distribution.plotted(table)
    assert bars.loc[bars["share"] > 0, "share"].eq(1).all()
    assert bars.loc[bars["label"] == 1].groupby("model")["bin_hi"].max().gt(0.999).all()


def test_one_class_alone_is_drawn():
    figure = risk_distribution.draw(RISKS[RISKS["label"] == 1])
    assert "n 30\nn 0" in {text.get_text() for text in figure.axes[0].texts}


@pytest.mark.parametrize("module", [layer_curves, held_out_heatmap])
def test_broken_scores_are_named(module):
    with pytest.raises(results.TableError, match="two rows for model miniature/llama"):
        module.draw(pd.concat([SCORES, SCORES]))
    with pytest.raises(results.TableError, match="column auroc"):
        module.draw(SCORES.assign(auroc=np.nan))


def test_a_risk_beyond_its_range_is_named():
    with pytest.raises(results.TableError, match=r"column risk: 1\.5 is no probability"):
        risk_distribution.draw(RISKS.assign(risk=1.5))
    with pytest.raises(results.TableError, match="column risk"):
        risk_distribution.draw(RISKS.assign(risk=np.nan))


def test_redraw_writes_three_files_a_figure_and_the_csv_is_what_is_plotted(tmp_path):
    arms = synthetic.ARMS | {
        ("anchored+anchors-30", "probe"): (0.02, 0.96),
        **{(f"adaptive-kl-{low}-1", "probe"): (0.01, 0.9) for low in (0.02, 0.1, 0.3)},
    }
    one = {
        "scores": SCORES[SCORES["model"] == MODELS[0]],
        "risks": RISKS,
        "evaluations": frame(synthetic.evaluations(models=("m",), arms=arms)),
        "steps": frame(synthetic.steps(models=("m",), n_steps=20)),
        "costs": frame(synthetic.costs()),
        "operating": frame(synthetic_evidence.operating()),
        "reliability": frame(synthetic_evidence.reliability(MODELS[:1])),
        "drift": frame(synthetic_evidence.drift()),
        "causal": frame(synthetic.causal()),
        "controls": frame(synthetic.controls(models=("m",))),
        "layers": frame(synthetic.layers(models=("m",))),
    }
    pictures = figures.redraw(one, tmp_path)
    # One position is nothing to draw for what shows several together.
    drawn = [
        name for name, module in ((name, figures.load(name)) for name in figures.names())
        if module.TABLE in one and not hasattr(module, "TOGETHER")
    ]  # fmt: skip
    assert [path.name for path in pictures] == [f"{name}.png" for name in drawn]
    for picture in pictures:
        with Image.open(picture) as image:
            assert image.width > 400
            assert not set(image.info) & {"Software", "Creation Time"}
        assert picture.with_suffix(".pdf").read_bytes().startswith(b"%PDF")
        module = figures.load(picture.stem)
        want = module.plotted(one[module.TABLE])
        got = pd.read_csv(picture.with_suffix(".csv"))
        pd.testing.assert_frame_equal(got, want, check_dtype=False)
    assert len(list(tmp_path.iterdir())) == 3 * len(pictures)


def test_several_train_sets_give_a_figure_each(tmp_path):
    both = [synthetic.scores(models=("m",), train_set=name, held_out=()) for name in ("a", "b:c/d")]
    pictures = figures.redraw({"scores": frame([*both[0], *both[1]])}, tmp_path)
    assert sorted(path.name for path in pictures if "curves" in path.name) == [
        "layer_curves-a.png",
        "layer_curves-b-c-d.png",
    ]
    csv = pd.read_csv(tmp_path / "layer_curves-a.csv")
    assert set(csv["eval_set"]) == {"a"}


NEW_FIGURE = """
from matplotlib.figure import Figure
TABLE = "scores"
def plotted(table):
    return table[["layer", "auroc"]]
def draw(table):
    figure = Figure()
    figure.subplots().scatter("layer", "auroc", data=plotted(table))
    return figure
"""


def test_adding_a_figure_is_adding_a_file(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "dots.py").write_text(NEW_FIGURE)
    assert "dots" not in figures.names()
    monkeypatch.setattr(figures, "__path__", [str(tmp_path / "mine")])
    try:
        assert figures.names() == ("dots",)
        figures.redraw({"scores": SCORES}, tmp_path / "out")
    finally:
        sys.modules.pop("analysis.figures.dots", None)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"dots.png", "dots.pdf", "dots.csv"}


def test_every_picture_has_its_labels_inside():
    """No text is cut at the edge: with a border of padding the picture's rim stays white."""
    for module, table in (
        (layer_curves, SCORES),
        (held_out_heatmap, SCORES),
        (risk_distribution, RISKS),
    ):
        with style.context():
            buffer = io.BytesIO()
            module.draw(table).savefig(buffer, dpi=60)
        grey = np.asarray(Image.open(buffer).convert("L"))
        rim = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
        assert rim.min() > 250, module.__name__
        assert grey.min() < 60


def test_drawing_needs_neither_torch_nor_the_probes_nor_a_display():
    code = (
        "import sys, analysis.figures as f\n"
        "[f.load(name) for name in f.names()]\n"
        "import analysis.tables\n"
        "assert not {'torch', 'probes'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
