"""Exponents of known powers, and the pictures of the two tables of speed."""

import io
import math

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from analysis import figures, results, style
from analysis.exponents import SLACK, Exponent, exponent, in_words, too_fast
from analysis.figures import bench_ratios, growth_exponents
from analysis.results import BenchRow, GrowthRow
from tests.analysis import synthetic

NAN = math.nan
SIZES = np.array([16.0, 32, 64, 128, 256])


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_a_known_power_is_found_and_another_is_not(power):
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(400):
        noisy = 3 * SIZES**power * np.exp(0.1 * rng.standard_normal(len(SIZES)))
        found = exponent(SIZES, noisy)
        inside += found.lo <= power <= found.hi
        # Positive control: a power that is off by one is never in the interval's middle.
        assert abs(found.value - power) < 0.5 < abs(found.value - (power + 1))
    assert 0.92 < inside / 400 < 0.98  # a 95 % interval
    assert exponent(SIZES, 3 * SIZES**power).value == pytest.approx(power)


def test_the_least_squares_are_numpys():
    values = np.array([1.0, 2.5, 3.0, 9.0, 14.0])
    slope = np.polyfit(np.log(SIZES), np.log(values), 1)[0]
    assert exponent(SIZES, values).value == pytest.approx(slope)


def test_equal_values_have_exponent_zero_and_no_width():
    assert exponent(SIZES, np.full(5, 9.3)) == Exponent(0.0, 0.0, 0.0)
    assert in_words(Exponent(-0.001, -0.004, 0.02)) == "0.00 [0.00, 0.02]"


def test_what_is_not_known_is_left_out_and_two_points_are_too_few():
    holes = np.where(SIZES == 32, NAN, SIZES**2)
    assert exponent(SIZES, holes).value == pytest.approx(2.0)
    assert exponent(SIZES, np.where(SIZES == 32, 0.0, SIZES**2)).value == pytest.approx(2.0)
    assert all(map(math.isnan, exponent(SIZES[:2], SIZES[:2])))


def test_too_fast_is_what_is_clearly_above():
    assert too_fast(1.0 + SLACK + 0.01, 1.0)
    assert not too_fast(1.0 + SLACK - 0.01, 1.0)
    assert not too_fast(NAN, 1.0) and not too_fast(2.0, NAN)


def growth_rows(bench="capture", quantity="prompts", time=1.0, memory=0.0, must=1.0):
    found = exponent(SIZES, SIZES**time)
    peak = exponent(SIZES, SIZES**memory) if memory is not None else Exponent(NAN, NAN, NAN)
    return [
        GrowthRow(
            bench, quantity, size, ratio, ratio * 0.9, ratio * 1.1,
            NAN if memory is None else 4.0 * size**memory, *found, must, *peak, 0.0, "here", 5,
        )
        for size, ratio in zip(SIZES, (SIZES / SIZES[0]) ** time, strict=True)
    ]  # fmt: skip


GROWTH = synthetic.frame(
    [*growth_rows(), *growth_rows(quantity="layers", time=1.5),
     *growth_rows("loss", "vocabulary", memory=None)]
)  # fmt: skip


def texts(figure):
    return [text.get_text() for ax in figure.axes for text in ax.texts]


def test_a_panel_shows_points_lines_and_exponents_of_its_rows():
    figure = growth_exponents.draw(GROWTH)
    titles = [ax.get_title() for ax in figure.axes]
    assert titles == [
        "capture against prompts",
        "capture against layers",
        "loss against vocabulary",
    ]
    prompts, layers, loss = figure.axes
    for ax, power in ((prompts, 1.0), (layers, 1.5), (loss, 1.0)):
        (points,) = (line for line in ax.get_lines() if line.get_marker() == "o")
        np.testing.assert_allclose(points.get_ydata(), (SIZES / 16) ** power)
        fitted = [
            line for line in ax.get_lines() if line.get_color() == growth_exponents.COLOURS["time"]
        ]
        np.testing.assert_allclose(fitted[0].get_ydata(), (SIZES / 16) ** power)
        low, high = ax.get_ylim()
        assert low <= 0.9 and high > (SIZES[-1] / 16) ** power
    said = texts(figure)
    assert said[0] == "time ^ 1.00 [1.00, 1.00]; must be 1"
    assert said[1] == "memory ^ 0.00 [0.00, 0.00]; at most 0"
    assert len(said) == 5  # no memory in the last
    red = [
        t.get_text()
        for ax in figure.axes
        for t in ax.texts
        if t.get_color() == growth_exponents.FAST
    ]
    assert red == ["time ^ 1.50 [1.50, 1.50]; must be 1"]


def test_memory_is_drawn_over_that_of_the_smallest_size():
    points = growth_exponents.plotted(synthetic.frame(growth_rows(memory=1.0)[::-1]))
    np.testing.assert_allclose(points["memory_ratio"], SIZES / 16)
    assert points["size"].tolist() == SIZES.tolist()


def bench_row(case, baseline, ratio=0.5, memory=NAN, failed="", goal=NAN, bench="capture"):
    ends = (NAN,) * 3 if failed else (ratio, 0.9 * ratio, 1.1 * ratio)
    return BenchRow(bench, case, baseline, *ends, memory, NAN, "here", 5, goal, failed)


BENCH_ROWS = [
    bench_row("one", "a", 0.5, 0.25), bench_row("one", "b", 1.5),
    bench_row("two", "a", failed="not measured: no GPU"),
    bench_row("two", "b", failed="Mismatch: results differ"),
    bench_row("one", "c", 0.7), bench_row("three", "the peak", 1.25, goal=0.6, bench="gpu"),
]  # fmt: skip
BENCH = synthetic.frame(BENCH_ROWS)


def test_a_line_a_baseline_under_the_heading_of_its_job():
    figure = bench_ratios.draw(BENCH)
    (ax,) = figure.axes
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names == ["a", "b", "c", "a", "b", "the peak: 80%, goal 60%"]
    said = texts(figure)
    assert [t for t in said if t.startswith(("capture: ", "gpu: "))] == [
        "capture: one", "capture: two", "gpu: three",
    ]  # fmt: skip
    assert "not measured: no GPU" in said and "Mismatch: results differ" in said
    places = dict(zip(names, ax.get_yticks(), strict=True))
    dots = {
        float(line.get_ydata()[0]): float(line.get_xdata()[0])
        for line in ax.get_lines()
        if line.get_marker() == "o"
    }
    assert sorted(dots.values()) == [0.5, 0.7, 1.25, 1.5]
    assert dots[places["c"]] == 0.7
    goals = [line.get_xdata()[0] for line in ax.get_lines() if line.get_marker() == "|"]
    assert [goal for goal in goals if not math.isnan(goal)] == [pytest.approx(1 / 0.6)]
    lo, hi = ax.get_xlim()
    assert lo < 0.25 and hi > 1 / 0.6
    assert figure.legends[0].get_title().get_text() == "here"


def test_many_lines_stand_in_two_columns_none_of_them_twice():
    rows = [bench_row(f"case {i}", f"b{j}") for i in range(8) for j in range(4)]
    figure = bench_ratios.draw(synthetic.frame(rows))
    assert len(figure.axes) == 2
    counts = [len(ax.get_yticks()) for ax in figure.axes]
    assert sum(counts) == len(rows) and abs(counts[0] - counts[1]) <= 4
    headings = [text for text in texts(figure) if text.startswith("capture: ")]
    assert headings == [f"capture: case {i}" for i in range(8)]


def test_no_text_lies_on_another():
    rows = [bench_row(f"case {i}, rather long in words", f"baseline {j}", 10.0 ** (j - 2), 0.9)
            for i in range(8) for j in range(4)]  # fmt: skip
    for module, table in ((bench_ratios, synthetic.frame(rows)), (growth_exponents, GROWTH)):
        with style.context():
            figure = module.draw(table)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        boxes = [
            text.get_window_extent(canvas.get_renderer())
            for ax in figure.axes
            for text in [*ax.texts, *ax.get_yticklabels(), *ax.get_xticklabels()]
            if text.get_text()
        ]
        assert len(boxes) > 10
        for i, one in enumerate(boxes):
            assert not any(one.overlaps(other) for other in boxes[i + 1 :])


def test_where_nothing_was_measured_nothing_is_drawn():
    unmeasured = synthetic.frame([bench_row("two", "a", failed="not measured: no GPU")])
    with pytest.raises(results.NothingToDraw):
        bench_ratios.draw(unmeasured)
    with pytest.raises(results.TableError, match="two rows"):
        bench_ratios.draw(synthetic.frame([BENCH_ROWS[0], BENCH_ROWS[0]]))


def test_both_are_drawn_from_a_folder(tmp_path):
    results.write(BENCH_ROWS, tmp_path / "bench")
    results.write(growth_rows(), tmp_path / "growth")
    pictures = figures.redraw(results.read_all(tmp_path), tmp_path)
    assert [path.stem for path in pictures] == ["bench_ratios", "growth_exponents"]
    first = [path.read_bytes() for path in pictures]
    figures.redraw(results.read_all(tmp_path), tmp_path)
    assert [path.read_bytes() for path in pictures] == first
    assert io.BytesIO(first[0]).read(4) == b"\x89PNG"
