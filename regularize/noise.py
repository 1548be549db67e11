"""Libraries' notes to their own developers."""

import warnings

from transformers.utils import logging


def without_noise() -> None:
    """Keep them from the screen, for as long as the process lives."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers|peft")
