"""The figure of attackers: what is drawn is the table; what was not measured is a dash."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from analysis import figures, results
from analysis.attacker_rows import AttackerRow
from analysis.figures import adaptive_attack

NAN = float("nan")
ROW = AttackerRow(
    model="m", attacker="turns", defence="adaptive-kl", critic="probe", seed=1, rows=54,
    queries=100.0, harm_kept=1.0, risk_before=0.99, risk_after=0.1, flagged_before=1.0,
    flagged_after=0.0, attack_success=0.5, attack_success_lo=0.4, attack_success_hi=0.6,
    attack_success_own_form=0.9, attack_success_own_form_lo=0.8, attack_success_own_form_hi=0.95,
    new_task=0.8, over_refusal=0.0,
)  # fmt: skip
UNSEEN = {"risk_before": NAN, "risk_after": NAN, "flagged_before": NAN, "flagged_after": NAN}
ROWS = [
    replace(ROW, defence="before", critic="none", attack_success=0.0, **UNSEEN),
    replace(ROW, defence="none", critic="none", attack_success=1.0, **UNSEEN),
    ROW,
    replace(ROW, critic="label", risk_before=1.0, risk_after=1.0, attack_success=0.02),
    replace(ROW, attacker="none", risk_after=0.99, attack_success_own_form=NAN),
]


def frame(rows: list[AttackerRow]) -> pd.DataFrame:
    return pd.DataFrame([{name: getattr(row, name) for name in AttackerRow.__slots__}
                         for row in rows])  # fmt: skip


def texts(ax) -> set[str]:
    return {text.get_text() for text in ax.texts}


def test_seeds_are_averaged_within_students_interval():
    rows = [*ROWS, replace(ROW, seed=2, attack_success=0.7, risk_after=0.3)]
    line = adaptive_attack.plotted(frame(rows)).set_index(["attacker", "defence", "critic"])
    both = line.loc[("turns", "adaptive-kl", "probe")]
    assert both["seeds"] == 2 and both["risk_after"] == pytest.approx(0.2)
    half = 12.706204736 * np.std([0.5, 0.7], ddof=1) / np.sqrt(2)
    assert both["attack_success"] == pytest.approx(0.6)
    assert both["attack_success_lo"] == max(0, 0.6 - half) and both["attack_success_hi"] == 1
    alone = line.loc[("turns", "none", "none")]
    assert (alone["attack_success_lo"], alone["attack_success_hi"]) == (0.4, 0.6)
    assert np.isnan(alone["new_task_lo"]) and np.isnan(alone["risk_after"])


def test_numbers_and_dashes_stand_in_their_cells():
    figure = adaptive_attack.draw(frame(ROWS))
    risks, plain, own, task = figure.axes
    assert {"0\n[40, 60]", "100\n[40, 60]", "50\n[40, 60]", "2\n[40, 60]", "–"} == texts(plain) - {
        ""
    }
    assert "90\n[80, 95]" in texts(own) and "80" in texts(task)
    labels = [tick.get_text() for tick in own.get_xticklabels()]
    assert labels == ["before training", "SFT", "adaptive-kl,\nprobe", "adaptive-kl,\nlabel"]
    drawn = {tuple(line.get_xdata()) for line in risks.get_lines() if len(line.get_xdata()) == 2}
    assert drawn == {(0.99, 0.1), (0.99, 0.99)}  # not the oracle's
    assert [text.get_text() for text in risks.get_legend().get_texts()] == ["probe"]


def test_a_picture_a_model_and_two_rows_of_a_seed_are_refused(tmp_path):
    table = frame([*ROWS, *(replace(row, model="n") for row in ROWS)])
    drawn = figures.redraw({"attackers": table}, tmp_path)
    assert [path.name for path in drawn] == ["adaptive_attack-m.png", "adaptive_attack-n.png"]
    with pytest.raises(results.TableError, match="two rows for model m"):
        adaptive_attack.plotted(frame([ROW, ROW]))


def test_the_table_is_written_and_read(tmp_path):
    results.write(ROWS, tmp_path / "attackers")
    back = results.read_rows(tmp_path)["attackers"]
    assert repr(back) == repr(ROWS)
