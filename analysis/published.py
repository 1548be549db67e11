"""What a paper prints, to stand beside what is measured: only of the same model, attack and arm.

Known is one table of "Learning to Stay Safe" (arXiv 2602.17546): attack success after 20 epochs on
HEx-PHI's 300 rows. Its learning rate is not said; 2e-4 is the first of its released code. By which
judge and threshold it counts is not known, nor are seeds or intervals, so that a difference to it
may be the judge's.
"""

from __future__ import annotations

import math

import pandas as pd

from analysis import arms

COLUMN = "attack_success_published"
"""Of the table of defences: a share (0 to 1), NaN where the paper has none."""
ATTACK, RATE = "hex-phi", 2e-4

_ARMS = (
    (arms.BEFORE, "none"),
    ("none", "none"),
    ("constrained-sft", "none"),
    ("vaccine", "none"),
    ("lisa", "none"),
    ("antidote", "none"),
    ("adaptive-kl", "probe"),
)
_PERCENT = {
    "microsoft/Phi-3.5-mini-instruct": (1.35, 97.27, 5.33, 89.18, 65.12, 62.38, 1.67),
    "meta-llama/Llama-3.1-8B-Instruct": (0.33, 96.92, 4.33, 86.29, 68.98, 61.91, 3.67),
    "meta-llama/Llama-3.2-3B-Instruct": (5.00, 96.27, 6.67, 87.90, 67.28, 58.59, 6.67),
    "Qwen/Qwen2.5-7B-Instruct": (4.05, 96.92, 13.67, 89.19, 63.17, 61.54, 5.69),
    "Qwen/Qwen2.5-3B-Instruct": (8.72, 96.91, 14.0, 89.34, 68.19, 63.82, 9.06),
}


def attack_success(line: pd.Series) -> float:
    """What the paper has for a line of the table of defences; NaN where it has nothing."""
    arm = (line["defence"], line["critic"])
    setting = (line["attack"], line["learning_rate"]) == (ATTACK, RATE)
    if line["model"] not in _PERCENT or arm not in _ARMS:
        return math.nan
    if not setting and line["defence"] != arms.BEFORE:
        return math.nan
    return _PERCENT[line["model"]][_ARMS.index(arm)] / 100
