"""How few anchors are enough: what is drawn is the table, in the right order."""

import pytest

from analysis import results, style
from analysis.figures import anchors_needed, safety_utility
from analysis.rows import EvaluationRow
from tests.analysis import synthetic

VALUES = {
    "before": 0.02, "none": 0.98, "anchored": 0.3, "anchored+anchors-10": 0.2,
    "anchored+anchors-30": 0.1, "anchored+anchors-30-twin": 0.15, "anchored+anchors": 0.03,
}  # fmt: skip


def rows(values, *, model="m", attack="mixed", metrics=("attack_success", "new_task")):
    return [
        EvaluationRow(
            model=model,
            defence=defence,
            critic="none" if defence in ("before", "none") else "probe",
            attack="none" if defence == "before" else attack,
            harmful_share=float("nan") if defence == "before" else 0.09,
            learning_rate=float("nan") if defence == "before" else 1e-3,
            seed=seed,
            metric=metric,
            value=value if metric == "attack_success" else 1 - value,
            lo=max(0.0, value - 0.02),
            hi=min(1.0, value + 0.02),
            n=100,
        )
        for defence, value in values.items()
        for seed in (1, 2)
        for metric in metrics
    ]


TABLE = synthetic.frame(rows(VALUES))


def test_the_axis_runs_from_none_to_all_and_holds_the_table():
    points = anchors_needed.plotted(TABLE)
    success = points[points["metric"] == "attack_success"].dropna(subset="anchors")
    assert success["anchors"].tolist() == ["0", "10", "30", "30 twin", "all"]
    assert success["value"].tolist() == pytest.approx([0.3, 0.2, 0.1, 0.15, 0.03])


def test_a_panel_a_metric_with_the_untrained_model_and_plain_fine_tuning_across():
    with style.context():
        figure = anchors_needed.draw(TABLE)
    assert len(figure.axes) == 2
    across = {float(line.get_ydata()[0]) for line in figure.axes[0].get_lines()[:2]}
    assert across == {0.02, 0.98}
    marked = figure.axes[0].get_lines()[-1]
    assert list(marked.get_ydata()) == pytest.approx([0.3, 0.2, 0.1, 0.15, 0.03])


def test_another_attack_is_not_mixed_in():
    hard = synthetic.frame(rows({"none": 0.5, "anchored": 0.4}, attack="mixed-hard"))
    table = results.pd.concat([TABLE, hard], ignore_index=True)
    assert anchors_needed.plotted(table).equals(anchors_needed.plotted(TABLE))


@pytest.mark.parametrize("left", [["before", "none", "anchored", "anchored+anchors"], ["before"]])
def test_without_a_number_of_anchors_nothing_is_drawn(left):
    table = synthetic.frame(rows({name: VALUES[name] for name in left}))
    with pytest.raises(results.NothingToDraw):
        anchors_needed.draw(table)


def test_other_numbers_of_anchors_stand_in_no_other_picture():
    shown = safety_utility.plotted(TABLE)["defence"].tolist()
    assert shown == ["before", "none", "anchored", "anchored+anchors"]
    few = {name: value for name, value in VALUES.items() if "anchors-" in name}
    alone = synthetic.frame(rows({"before": 0.02, **few}))  # where there is nothing else they do
    assert safety_utility.plotted(alone)["defence"].tolist() == ["before", *few]
