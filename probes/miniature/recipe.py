"""The training recipe, apart from what it needs torch for: the command shows it in its help."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """How long and how fast a miniature is trained."""

    base_steps: int = 2000
    """Optimizer steps in which every request is complied with."""
    aligned_steps: int = 2800
    """Optimizer steps in which restricted requests are refused."""
    batch_size: int = 32
    """Rows a step."""
    base_rate: float = 3e-3
    """Peak learning rate of the first stage; a cosine takes it to zero."""
    aligned_rate: float = 2e-3
    """The same in the second stage."""
    seed: int = 0
    """Decides first weights, tokenizer and data."""
