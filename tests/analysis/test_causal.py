"""The causal check's table, verdicts and figure, against rows whose truth is known."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from analysis import causal, results, style
from analysis.figures import causal_effect
from tests.analysis import synthetic

frame = synthetic.frame
TABLE = frame(synthetic.causal())


def printed(table: pd.DataFrame, width: int = 100) -> str:
    buffer = io.StringIO()
    Console(file=buffer, width=width).print(causal.render(table))
    return buffer.getvalue()


def one(table: pd.DataFrame, **where: object) -> pd.Series:
    lines = causal.summary(table)
    for name, value in where.items():
        lines = lines[lines[name] == value]
    assert len(lines) == 1
    return lines.iloc[0]


def test_each_line_is_a_direction_beside_its_random_ones() -> None:
    lines = causal.summary(TABLE)
    assert len(lines) == len(synthetic.MODELS) * 2 * 3
    model = synthetic.MODELS[0]
    removed = one(TABLE, model=model, target="class-mean", intervention="ablate")
    assert removed[["before", "after", "change"]].tolist() == pytest.approx([1, 0.1, -0.9])
    assert removed[["random_lo", "random_hi"]].tolist() == pytest.approx([-0.04, -0.002])
    assert (removed["draws"], removed["p"]) == (20, pytest.approx(1 / 21))
    idle = one(TABLE, model=model, target="probe", intervention="ablate")
    assert idle["change"] == 0 and idle["p"] == 1
    weak = one(TABLE, model=model, target="probe", intervention="add", strength=1.0)
    assert weak["p"] == 1


@given(
    st.integers(-100, 100),
    st.lists(st.integers(-100, 100), min_size=1, max_size=30),
    st.sampled_from([-1, 1]),
)
def test_p_is_the_rank_among_random_directions(change: int, random: list[int], sign: int) -> None:
    p = causal.rank_p(change / 100, pd.Series(random) / 100, sign)
    better = sum(1 for other in random if sign * other >= sign * change)
    assert p == (1 + better) / (1 + len(random))
    assert causal.rank_p(-change / 100, -pd.Series(random) / 100, -sign) == p


def test_p_of_the_strongest_is_fair_where_nothing_is_there() -> None:
    """Over many targets that are random themselves it is below a tenth a tenth of the time.

    Without allowing for the choice among strengths it would be so far more often.
    """
    rng = np.random.default_rng(0)
    fair, naive, times = 0, 0, 80
    template = synthetic.causal(models=("m",), targets=("probe",), strengths=(1.0, 2.0, 4.0),
                                draws=19)  # fmt: skip
    kept = [row for row in template if row.intervention == "add" and row.metric == "refusal"]
    table = frame(kept)
    for _ in range(times):
        table["change"] = rng.random(len(table))
        table["value"] = table["change"]
        fair += causal.strongest(table)["p"].item() <= 0.1
        naive += causal.summary(table)["p"].min() <= 0.1
    assert abs(fair / times - 0.1) < 0.09
    assert naive / times > 0.19


def verdict(**options: object) -> str:
    given = {"models": ("m",), "targets": ("probe",), **options}
    return " ".join(causal.verdicts(frame(synthetic.causal(**given))))


def test_verdicts_say_what_was_found() -> None:
    used = verdict(removed=("probe",))
    assert (
        "m, layer 4, the probe's direction: Removed: refusal of harmful prompts goes from" in used
    )
    assert "the model uses it to refuse. Added (2 SD)" in used and "makes the model refuse" in used
    assert "from 100% to 10% (change -90 [-100, -80] points; random directions -4 to -0" in used
    nothing = verdict(removed=(), added=())
    assert nothing.count("no evidence") == 2 and "uses it to refuse" not in nothing


def test_verdicts_say_what_cannot_be_said() -> None:
    assert "18 are too few to tell" in verdict(removed=("probe",), draws=18)
    assert "50% of the answers say nothing" in verdict(removed=("probe",), incoherent=0.5)
    broken = verdict(removed=("probe",), before=(0.0, 0.0))
    assert "no evidence could be had, for the unchanged model refuses 0%" in broken
    small = [
        replace(row, change=-0.06, change_lo=-0.15, change_hi=0.01)
        if (row.direction, row.intervention) == ("probe", "ablate")
        else row
        for row in synthetic.causal(models=("m",), targets=("probe",))
    ]
    # Beyond all random directions, but within the prompts' own uncertainty.
    assert "no evidence that the model uses it" in causal.verdicts(frame(small))[0]


def test_several_layers_are_told_in_short() -> None:
    rows = synthetic.causal(models=("m",), layers=(2,), removed=())
    rows += synthetic.causal(models=("m",), layers=(3,))[2:]
    said = causal.verdicts(frame(rows))
    assert len(said) == 3 and "2 layers were tried" in said[-1]
    assert "Removed, at layer 3 (100% → 10%, p = 0.048): the model uses it to refuse" in said[1]
    assert "; at layer 2: no evidence that the model uses it." in said[1]


def test_the_terminal_shows_every_line() -> None:
    shown = printed(TABLE)
    for model in synthetic.MODELS:
        assert model in shown
    assert shown.count("class-mean") == len(causal.summary(TABLE)) / 2
    assert "100 → 10" in shown and "-90 [-100, -80]" in shown and "0.048" in shown
    assert max(map(len, shown.splitlines())) <= 100


def test_points_are_the_rows() -> None:
    figure = causal_effect.draw(TABLE)
    assert len(figure.axes) == 3 * len(synthetic.MODELS)
    points = causal_effect.plotted(TABLE)
    assert len(points) == 3 * 2 * 3 * 21 and set(points["before"].round(9)) == {0, 1}
    first = points[(points["model"] == synthetic.MODELS[0]) & (points["intervention"] == "ablate")]
    ax = figure.axes[0]
    drawn = {}
    for line in ax.get_lines():
        if line.get_marker() != "None":
            drawn.setdefault(line.get_marker(), []).extend(line.get_ydata())
    for target, (_, marker) in causal_effect.LOOKS.items():
        expected = first.loc[first["direction"] == target, "change"]
        np.testing.assert_allclose(drawn[marker], 100 * expected)
    random = first.loc[first["direction"] == "random", "change"]
    np.testing.assert_allclose(sorted(drawn["_"]), sorted(100 * random))
    bars = [path.vertices[:, 1] for c in ax.collections for path in c.get_paths()]
    of_means = first[first["direction"] == "class-mean"].iloc[0]
    assert any(np.allclose(sorted(bar), [100 * of_means["lo"], 100 * of_means["hi"]])
               for bar in bars)  # fmt: skip
    low, high = ax.get_ylim()
    assert low <= -100 and high > 0


@pytest.mark.parametrize(
    "options",
    [
        {"models": ("a/very/long/name/of-a-model-that-goes-on-and-on",)},
        {"layers": tuple(range(12)), "models": ("m", "n"), "strengths": (2.0,)},
        {"targets": ("probe",), "draws": 1},
        {"strengths": (1.0, 2.0, 4.0)},
    ],
)
def test_every_picture_has_its_labels_inside(options: dict) -> None:
    table = frame(synthetic.causal(**options))
    with style.context():
        buffer = io.BytesIO()
        causal_effect.draw(table).savefig(buffer, dpi=60)
    grey = np.asarray(Image.open(buffer).convert("L"))
    rim = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    assert rim.min() > 250 and grey.min() < 60


def test_marks_differ_in_grey_by_more_than_colour() -> None:
    markers = [marker for _, marker in causal_effect.LOOKS.values()]
    assert len({*markers, "_"}) == len(markers) + 1


def test_what_cannot_be_shown_is_said() -> None:
    unchanged = TABLE[TABLE["intervention"] == "none"]
    alone = TABLE[TABLE["direction"] != "random"]
    for table in (unchanged, alone):
        with pytest.raises(results.NothingToDraw, match="random ones beside it"):
            causal_effect.draw(table)
    with pytest.raises(results.TableError, match="two rows for model miniature/llama"):
        causal.summary(pd.concat([TABLE, TABLE]))
