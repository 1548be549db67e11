"""Attack success by the share of harmful rows: one panel a model, one line an arm, 95 % bands.

Of each model the attack and the learning rate are shown at which most shares were tried. The
untrained model is a line across.
"""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from analysis import sweeps

TABLE = "evaluations"
ALONG = "harmful_share"


def plotted(table: pd.DataFrame) -> pd.DataFrame:
    """The points: the setting, the arm, attack_success, attack_success_lo, attack_success_hi."""
    return sweeps.plotted(table, ALONG)


def draw(table: pd.DataFrame) -> Figure:
    """Attack success (percent) by harmful share of the training data (percent)."""
    figure, axes = sweeps.draw(table, ALONG)
    for ax in axes:
        ax.xaxis.set_major_formatter(lambda share, _: f"{100 * share:.3g}")
        ax.set_xlabel("harmful rows in the training data (%)")
    return figure
