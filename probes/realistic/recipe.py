"""How the real model is aligned, apart from what needs torch: the command shows it in its help."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """How long, how fast and with what adapter."""

    steps: int = 600
    """Optimizer steps."""
    batch_size: int = 16
    """Examples a step."""
    rate: float = 5e-4
    """Peak learning rate, with a linear warm-up and a cosine to zero."""
    lora_rank: int = 16
    """r of the adapter on all linear maps; its alpha is 2 r."""
    first: float = 4.0
    """Weight in the loss of an answer's first token."""
    seed: int = 0
    """Of answers, order and adapter."""
