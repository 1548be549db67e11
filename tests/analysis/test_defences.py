"""The table of defences: every cell against a naive oracle, and what is printed fits."""

import io
import math
import statistics
from dataclasses import replace

import pandas as pd
import pytest
from rich.console import Console

from analysis import defences, results
from tests.analysis import synthetic

T3 = 4.302652730
"""97.5 % point of Student's t with two degrees of freedom."""
METRICS = ("attack_success", "refusal", "incoherent", "over_refusal", "utility", "new_task")
ROWS = synthetic.evaluations(models=("m", "n"))
EVALUATIONS = synthetic.frame(ROWS)


def printed(evaluations, width=100):
    console = Console(file=io.StringIO(), width=width)
    console.print(defences.render(evaluations))
    return console.file.getvalue()


def key(row):
    """A run as text, so that NaN equals NaN."""
    return repr([getattr(row, name) for name in defences.RUN])


def test_each_cell_is_the_mean_of_its_seeds_with_students_or_wilsons_interval():
    by_run = {}
    for row in ROWS:
        by_run.setdefault(key(row), {}).setdefault(row.metric, []).append(row)
    table = defences.defence_table(EVALUATIONS)
    assert len(table) == len(by_run) == 2 * (1 + 7 * 6)
    kinds = set()
    for line in table.itertuples(index=False):
        for metric in METRICS:
            of_seeds = by_run[key(line)][metric]
            values = [row.value for row in of_seeds]
            mean, lo, hi = (getattr(line, f"{metric}{end}") for end in ("", "_lo", "_hi"))
            assert mean == pytest.approx(statistics.fmean(values))
            if len(set(values)) == 1:
                want = synthetic.wilson(round(200 * values[0]), 200)
            else:
                half = T3 * statistics.stdev(values) / math.sqrt(3)
                want = (max(0, mean - half), min(1, mean + half))
            assert (lo, hi) == pytest.approx(want, abs=1e-9)
            kinds.add((len(values), len(set(values)) == 1))
        assert line.seeds == len(values)
        assert line.attack_success_worst == max(
            r.value for r in by_run[key(line)]["attack_success"]
        )
    assert kinds >= {(1, True), (3, True), (3, False)}


def test_the_order_of_the_rows_of_seeds_does_not_matter():
    shuffled = EVALUATIONS.sort_values("seed", ascending=False, kind="stable")
    one, other = (
        defences.defence_table(t).set_index(defences.RUN) for t in (EVALUATIONS, shuffled)
    )
    pd.testing.assert_frame_equal(one.sort_index(), other.sort_index())


def test_metrics_that_no_one_knows_are_in_the_table_and_unmeasured_ones_are_nan():
    rows = [r for r in ROWS if r.metric != "utility" or r.defence == "before"]
    rows += [replace(r, metric="p_sure") for r in ROWS if r.metric == "refusal"]
    table = defences.defence_table(synthetic.frame(rows))
    assert table["p_sure"].tolist() == table["refusal"].tolist()
    assert table["utility"].notna().tolist() == (table["defence"] == "before").tolist()


@pytest.mark.parametrize("width", [100, 120])
def test_it_fits_the_terminal_with_every_number_whole(width):
    rows = synthetic.evaluations(arms=synthetic.MANY_ARMS)
    rows += [
        replace(r, metric="attack_success_exact") for r in rows if r.metric == "attack_success"
    ]
    text = printed(synthetic.frame(rows), width)
    assert max(len(line) for line in text.splitlines()) <= width
    assert "…" not in text
    for defence, critic in synthetic.MANY_ARMS:
        assert defences.arms.label(defence, critic) in text
    assert (
        "microsoft/Phi-3.5-mini-instruct: mixed, 9 % harmful, learning rate 5e-3, 3 seeds" in text
    )


def test_every_setting_has_a_block_that_begins_with_the_untrained_model():
    lines = printed(EVALUATIONS).splitlines()
    heads = [i for i, line in enumerate(lines) if line.startswith(("m: ", "n: "))]
    assert len(heads) == 2 * 6
    for head in heads:
        rule = next(i for i in range(head, len(lines)) if "──" in lines[i])
        assert lines[rule + 1].startswith(" before training")
        assert lines[rule + 2].startswith(" SFT")


def test_percent_with_one_decimal_and_only_all_is_100():
    def row(value, lo, hi, seed=0):
        return replace(ROWS[0], defence="d", metric="attack_success", seed=seed,
                       value=value, lo=float(lo), hi=float(hi))  # fmt: skip

    for rows, cell in [
        ([row(0.007, 0, 0.021)], "0.7 [0.0, 2.1]"),
        ([row(0.9999, 0.99, 1)], "99.9 [99.0, 100]"),
        ([row(1.0, 0.981, 1)], "100 [98.1, 100]"),
        ([row(math.nan, math.nan, math.nan)], "–"),
        ([row(0.5, math.nan, math.nan)], "50.0"),
        ([row(0.1, 0, 1), row(0.2, 0, 1, 1), row(0.3, 0, 1, 2)], "20.0 [0.0, 44.8]"),
    ]:
        table = synthetic.frame(rows)
        assert f" {cell} " in printed(table)
        assert f"| {cell} |" in defences.markdown(table)


def test_markdown_holds_the_same_cells_and_the_interval_of_the_new_task():
    text = defences.markdown(EVALUATIONS[EVALUATIONS["model"] == "m"])
    assert text.count("| defence, critic | attack success | worst seed | refusal |") == 6
    table = defences.defence_table(EVALUATIONS)
    of_sft = table[(table["defence"] == "none") & (table["model"] == "m")]
    drawn = [line.strip("|\n").split("|") for line in text.splitlines() if line.startswith("| SFT")]
    for cells, row in zip(drawn, of_sft.to_dict("records"), strict=True):
        assert float(cells[1].split()[0]) == pytest.approx(100 * row["attack_success"], abs=0.051)
        assert float(cells[2]) == pytest.approx(100 * row["attack_success_worst"], abs=0.051)
        lo, hi = cells[-1].split("[")[1].strip("] ").split(", ")
        assert float(lo) == pytest.approx(100 * row["new_task_lo"], abs=0.051)
        assert float(hi) == pytest.approx(100 * row["new_task_hi"], abs=0.051)


def test_the_untrained_model_alone_is_a_table_too():
    text = printed(EVALUATIONS[EVALUATIONS["defence"] == "before"])
    assert text.splitlines()[0].strip() == "m"
    assert text.count("before training") == 2


def test_broken_tables_are_named():
    with pytest.raises(results.TableError, match="two rows for model m, attack none"):
        defences.defence_table(pd.concat([EVALUATIONS, EVALUATIONS]))
    percent = EVALUATIONS.assign(value=100 * EVALUATIONS["value"])
    with pytest.raises(results.TableError, match=r"refusal of m, before is 9\d.*no share"):
        defences.defence_table(percent)
    with pytest.raises(results.NothingToDraw, match="no run has attack_success and p_sure"):
        defences.measured(EVALUATIONS, "attack_success", "p_sure")


def test_side_by_side_holds_each_models_means():
    one = EVALUATIONS[["attack", "harmful_share", "learning_rate"]].dropna().iloc[0]
    at = (EVALUATIONS[list(one.index)] == one).all(axis=1)
    chosen = EVALUATIONS[at | (EVALUATIONS["defence"] == "before")]
    lines = defences.side_by_side(chosen).splitlines()
    table = defences.defence_table(chosen)
    models = list(dict.fromkeys(table["model"]))
    sft = next(line for line in lines if line.startswith("| SFT"))
    values = sft.split("|")[2].split("/")
    for model, value in zip(models, values, strict=True):
        rows = table[(table["model"] == model) & (table["defence"] == "none")]
        assert float(value) == pytest.approx(100 * rows["attack_success"].item(), abs=0.051)
    with pytest.raises(results.TableError, match="several settings"):
        defences.side_by_side(EVALUATIONS)


PHI = "microsoft/Phi-3.5-mini-instruct"


def test_the_papers_own_figures_stand_beside_the_same_model_attack_and_arm():
    rows = [row for row in synthetic.evaluations(models=(PHI,)) if row.metric == "attack_success"]
    before, sft = rows[0], next(row for row in rows if row.defence == "none")
    theirs = replace(sft, attack="hex-phi", harmful_share=1.0, learning_rate=2e-4)
    ours = replace(theirs, defence="adaptive-kl", critic="probe")
    shown = synthetic.frame([before, theirs, ours, replace(ours, defence="lox", critic="none")])
    table = defences.defence_table(shown)
    found = table["attack_success_published"].tolist()
    assert found[:3] == pytest.approx([0.0135, 0.9727, 0.0167])
    assert math.isnan(table["attack_success_published"][3])
    text = printed(shown)
    assert "paper" in text and " 97.3 " in text and " 1.7 " in text
    assert "in the paper" in defences.markdown(shown) and "97.3" in defences.latex(shown)
    others = (
        replace(theirs, model="n"),
        replace(theirs, attack="alpaca"),
        replace(theirs, learning_rate=2e-5),
        replace(ours, critic="label"),
    )
    for other in others:
        assert "attack_success_published" not in defences.defence_table(synthetic.frame([other]))
