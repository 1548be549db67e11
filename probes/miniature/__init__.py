"""The miniatures: a toy request language and three small chat models aligned in it.

A castle's servant is asked to do things. Some pairs of a verb and an object are restricted, and the
aligned models refuse them; the same words in another order, or in a sentence that only mentions
the deed, are harmless. Everything here is harmless in content: it stands for a real aligned model
where none can be downloaded or run.

The weights ship with the package; ``python -m probes.miniature`` trains them anew.
"""

from pathlib import Path
from typing import Literal, get_args

Family = Literal["llama", "phi3", "qwen2"]
Stage = Literal["aligned", "base"]
FAMILIES: tuple[Family, ...] = get_args(Family)

WEIGHTS = Path(__file__).parent / "weights"


def folder(family: Family, *, stage: Stage = "aligned") -> Path:
    """The folder that ``from_pretrained`` loads a miniature from.

    Args:
        family: which architecture.
        stage: ``aligned`` refuses restricted requests; ``base`` is the same model before that
            training and complies with all of them.
    """
    return WEIGHTS / family / stage
