"""The costs of defences: the sums of the table, what is printed, and what is drawn."""

import io
import math
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.container import BarContainer
from PIL import Image
from rich.console import Console

from analysis import costs, figures, results, style
from analysis.figures import cost
from tests.analysis import synthetic

ROWS = synthetic.costs()
COSTS = synthetic.frame(ROWS)
MEASURED = [row for row in ROWS if not row.failed]


def test_a_whole_training_is_its_parts():
    table = costs.cost_table(COSTS[COSTS["failed"] == ""])
    for line, row in zip(table.to_dict("records"), MEASURED, strict=True):
        aside = row.before + row.after
        assert line["whole"] == pytest.approx(row.time_ratio * row.steps + aside)
        assert line["whole_lo"] == pytest.approx(row.time_ratio_lo * row.steps + aside)
        assert line["whole_hi"] == pytest.approx(row.time_ratio_hi * row.steps + aside)


def test_each_form_holds_every_defence_and_the_reason_of_the_one_that_failed():
    console = Console(file=io.StringIO(), width=100)
    console.print(costs.render(COSTS))
    printed, markdown, latex = console.file.getvalue(), costs.markdown(COSTS), costs.latex(COSTS)
    assert max(map(len, printed.splitlines())) <= 100
    for row in MEASURED:
        whole = row.time_ratio * row.steps + row.before + row.after
        cell = f"{row.time_ratio:.2f} [{row.time_ratio_lo:.2f}, {row.time_ratio_hi:.2f}]"
        assert f"| {cell} | {row.memory_ratio:.2f} |" in markdown
        assert f"| {whole:.2f} |\n" in markdown
        assert f" & {cell} & " in latex
        assert cell in printed
    for text in (printed, markdown):
        assert "miniature/llama, reweight: not measured: InputError: too few steps" in text
    assert {line.count(" & ") for line in latex.splitlines() if line.endswith(r"\\")} == {8}
    assert "what of the process was resident" in " ".join(printed.split())


def test_an_unmeasured_memory_is_a_dash():
    rows = [replace(row, memory_ratio=math.nan, memory="none") for row in MEASURED]
    assert "| – |" in costs.markdown(synthetic.frame(rows))
    assert "not measured here" in costs.markdown(synthetic.frame(rows))
    ax = cost.draw(synthetic.frame(rows)).axes[1]
    assert [text.get_text() for text in ax.texts] == ["not measured"]


def test_points_and_bars_are_the_lines_of_the_table():
    figure = cost.draw(COSTS)
    time, memory, whole = figure.axes
    labels = [text.get_text() for text in time.get_yticklabels()]
    assert labels[0] == "SFT" and len(labels) == len(MEASURED)
    for ax, name in ((time, "time_ratio"), (memory, "memory_ratio")):
        (points,) = [line for line in ax.get_lines() if line.get_marker() != "None"]
        assert list(points.get_xdata()) == [getattr(row, name) for row in MEASURED]
        (at_one,) = [line for line in ax.get_lines() if line.get_ls() == ":"]
        assert set(at_one.get_xdata()) == {1}
    (bars,) = time.collections
    ends = [[x for x, _ in path.vertices] for path in bars.get_paths()]
    assert ends == [[row.time_ratio_lo, row.time_ratio_hi] for row in MEASURED]
    parts = [[bar.get_width() for bar in part] for part in whole.containers
             if isinstance(part, BarContainer)]  # fmt: skip
    for i, row in enumerate(MEASURED):
        want = [max(0, row.before), row.time_ratio * row.steps, row.after]
        assert [part[i] for part in parts] == pytest.approx(want)
    text = [one.get_text().split()[0] for one in whole.texts]
    sums = [row.time_ratio * row.steps + row.before + row.after for row in MEASURED]
    assert text == [f"{value:.2f}" for value in sums]
    # The one that is aligned first is longer than the axis, and says so.
    (beyond,) = [one.get_text() for one in whole.texts if "→" in one.get_text()]
    assert beyond.startswith("8.40") and whole.get_xlim()[1] < 8.4


def test_a_step_many_times_as_dear_has_an_axis_that_holds_it():
    rows = [replace(row, time_ratio=30.0, time_ratio_lo=28.0, time_ratio_hi=33.0)
            if row.defence == "lisa" else row for row in MEASURED]  # fmt: skip
    figure = cost.draw(synthetic.frame(rows))
    assert figure.axes[0].get_xscale() == "log"
    assert figure.axes[0].get_xlim()[1] > 33
    assert cost.draw(COSTS).axes[0].get_xscale() == "linear"  # the control


def test_labels_are_inside_and_apart():
    with style.context():
        figure = cost.draw(COSTS)
        FigureCanvasAgg(figure).draw()
        texts = [*figure.axes[0].get_yticklabels(), *(ax.xaxis.label for ax in figure.axes),
                 *figure.axes[2].texts, *figure.legends[0].get_texts()]  # fmt: skip
        boxes = [text.get_window_extent() for text in texts]
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=60)
    for i, one in enumerate(boxes):
        assert not any(one.overlaps(other) for other in boxes[i + 1 :])
    grey = np.asarray(Image.open(buffer).convert("L"))
    rim = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    assert rim.min() > 250


def test_models_have_a_figure_each_and_one_on_which_all_failed_has_none(tmp_path):
    both = synthetic.frame(synthetic.costs(models=("m", "n")))
    found = figures.redraw({"costs": both}, tmp_path)
    assert [path.name for path in found] == ["cost-m.png", "cost-n.png"]
    failed = synthetic.frame([row for row in ROWS if row.failed])
    with pytest.raises(results.NothingToDraw, match="no defence was measured"):
        cost.draw(failed)
    assert costs.markdown(failed).startswith("miniature/llama, reweight: not measured")


def test_rows_go_through_both_files(tmp_path):
    results.write(ROWS, tmp_path / "costs")
    from_parquet = results.read_all(tmp_path)["costs"]
    (tmp_path / "costs.parquet").unlink()
    assert results.read_all(tmp_path)["costs"].equals(from_parquet)
    assert from_parquet["failed"].tolist() == [row.failed for row in ROWS]
