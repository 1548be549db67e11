"""The null bands and the choice of the layer: what is drawn is what the rows say."""

import io

import numpy as np
import pytest
from PIL import Image

from analysis import figures, results, style
from analysis.figures import layer_choice, null_bands
from tests.analysis import synthetic

CONTROLS = synthetic.frame(synthetic.controls())
LAYERS = synthetic.frame(synthetic.layers())
MODEL = synthetic.MODELS[0]


def labelled(ax, label):
    return [line for line in ax.get_lines() if line.get_label() == label]


def test_bands_means_and_what_was_observed_are_the_rows():
    points = null_bands.plotted(CONTROLS)
    figure = null_bands.draw(CONTROLS)
    assert [ax.get_title() for ax in figure.axes] == list(synthetic.MODELS)
    for ax, model in zip(figure.axes, synthetic.MODELS, strict=True):
        of_model = points[(points["model"] == model)]
        layers = of_model[of_model["layer"] >= 0]
        bands = [c for c in ax.collections if len(c.get_paths()[0].vertices) > 6]
        for band, (control, rows) in zip(bands, layers.groupby("control", sort=False), strict=True):
            assert set(band.get_paths()[0].vertices[:, 1]) == {*rows["auroc_lo"], *rows["auroc_hi"]}
            (mean,) = labelled(ax, control)
            np.testing.assert_array_equal(mean.get_ydata(), rows["auroc"])
        (probe,) = labelled(ax, "probe")
        shuffled = layers[layers["control"] == "permuted-labels"]
        np.testing.assert_array_equal(probe.get_ydata(), shuffled["observed"])
        whole = of_model[of_model["layer"] == -1].iloc[0]
        assert labelled(ax, "best")[0].get_ydata()[0] == whole["observed"]
        assert labelled(ax, "best-shuffled")[0].get_ydata()[0] == whole["auroc"]
        assert labelled(ax, "best")[0].get_xdata()[0] > 5, "right of the last block"


@pytest.mark.parametrize(
    ("p", "words"),
    [
        (1 / 101, "p = 0.0099: no shuffle of 100 does as well"),
        (2 / 101, "p = 0.02: 1 shuffle of 100 does as well"),
        (31 / 101, "p = 0.31: 30 of 100 shuffles do as well"),
        (1.0, "p = 1: 100 of 100 shuffles do as well"),
    ],
)
def test_the_p_value_is_said_in_words(p, words):
    table = CONTROLS[CONTROLS["model"] == MODEL].copy()
    table.loc[table["layer"] == -1, "p_value"] = p
    assert words in {text.get_text() for text in null_bands.draw(table).axes[0].texts}


def test_shuffles_alone_and_layers_alone_are_drawn():
    alone = CONTROLS[(CONTROLS["control"] == "permuted-labels") & (CONTROLS["layer"] >= 0)]
    figure = null_bands.draw(alone)
    assert not labelled(figure.axes[0], "best")
    assert "random directions, likewise" not in {
        text.get_text() for text in figure.legends[0].get_texts()
    }


def test_points_marks_and_bars_are_the_rows():
    figure = layer_choice.draw(LAYERS)
    uppers = [ax for ax in figure.axes if ax.get_title()]
    lowers = [ax for ax in figure.axes if not ax.get_title()]
    assert [ax.get_title() for ax in uppers] == list(synthetic.MODELS)
    for upper, lower, model in zip(uppers, lowers, synthetic.MODELS, strict=True):
        rows = LAYERS[LAYERS["model"] == model]
        (curve,) = labelled(upper, "auroc")
        np.testing.assert_array_equal(curve.get_ydata(), rows["auroc"])
        marked = {
            "best": rows["best"],
            "within": rows["within_one_error"] & ~rows["best"],
            "beyond": ~rows["within_one_error"],
        }
        for name, which in marked.items():
            (line,) = labelled(upper, name)
            np.testing.assert_array_equal(line.get_xdata(), rows.loc[which, "layer"])
            assert len(line.get_xdata()), "each kind occurs"
        np.testing.assert_allclose([bar.get_height() for bar in lower.patches], rows["chosen"])


@pytest.mark.parametrize("n_layers", [1, 2, 32])
@pytest.mark.parametrize("models", [("m",), synthetic.MODELS[:2], ("a", "b", "c", "d")])
def test_any_depth_and_number_of_models_is_drawn_with_labels_inside(n_layers, models):
    for module, rows in (
        (null_bands, synthetic.controls(models, n_layers)),
        (layer_choice, synthetic.layers(models, n_layers)),
    ):
        with style.context():
            buffer = io.BytesIO()
            module.draw(synthetic.frame(rows)).savefig(buffer, dpi=40)
        grey = np.asarray(Image.open(buffer).convert("L"))
        rim = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
        assert rim.min() > 245, module.__name__
        assert grey.min() < 60


@pytest.mark.parametrize("module", [null_bands, layer_choice])
def test_nothing_to_draw_and_repeated_rows_are_said(module):
    table = CONTROLS if module is null_bands else LAYERS
    with pytest.raises(results.NothingToDraw, match="column auroc"):
        module.draw(table.assign(auroc=np.nan))
    with pytest.raises(results.TableError, match="two rows for model"):
        module.draw(synthetic.frame([*synthetic.controls(), *synthetic.controls()])
                    if module is null_bands
                    else synthetic.frame([*synthetic.layers(), *synthetic.layers()]))  # fmt: skip


def test_several_train_sets_give_a_figure_each(tmp_path):
    tables = {
        "controls": synthetic.frame(
            [row for name in "ab" for row in synthetic.controls(("m",), train_set=name)]
        ),
        "layers": synthetic.frame(
            [row for name in "ab" for row in synthetic.layers(("m",), train_set=name)]
        ),
    }
    names = [path.name for path in figures.redraw(tables, tmp_path)]
    assert names == [
        "layer_choice-a.png",
        "layer_choice-b.png",
        "null_bands-a.png",
        "null_bands-b.png",
    ]
