"""Which texts of the language fine-tuning may use: training, validation and test never meet.

A text's words decide by a hash (`language.share`), so that no prompt stands in two parts, whatever
the seeds, and twins, which hold the same words, fall together.
"""

from typing import Literal

from probes.miniature.language import share
from probes.miniature.splits import for_models

Part = Literal["models", "training", "validation", "test"]

_SHARES = 97
"""A prime, so that these parts cut across those of `probes.miniature.splits`."""


def part(text: str) -> Part:
    """The one part that a text belongs to.

    A quarter of the language is the `models`': they were trained on it before any fine-tuning. Of
    the rest, half is for fine-tuning (`training`) and a quarter each for `validation` and `test`.
    """
    if for_models(text):
        return "models"
    share_of_text = share(text, _SHARES)
    if share_of_text % 2 == 0:
        return "training"
    return "validation" if share_of_text % 4 == 1 else "test"
