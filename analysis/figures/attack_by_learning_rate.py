"""Attack success by learning rate: one panel a model, one line an arm, 95 % bands.

Of each model the attack and the harmful share are shown at which most rates were tried. The
untrained model is a line across.
"""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from analysis import arms, sweeps

TABLE = "evaluations"
ALONG = "learning_rate"


def plotted(table: pd.DataFrame) -> pd.DataFrame:
    """The points: the setting, the arm, attack_success, attack_success_lo, attack_success_hi."""
    return sweeps.plotted(table, ALONG)


def draw(table: pd.DataFrame) -> Figure:
    """Attack success (percent) by learning rate (logarithmic)."""
    figure, axes = sweeps.draw(table, ALONG)
    rates = sorted(plotted(table)[ALONG].dropna().unique())
    for ax in axes:
        ax.set(xscale="log", xlabel="learning rate")
        ax.set_xticks(rates, map(arms.short, rates))
        ax.xaxis.set_minor_locator(NullLocator())
    return figure
