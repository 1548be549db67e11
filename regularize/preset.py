"""Whose defaults the options of `regularize.compare` have: `--preset NAME`, and what else is given.

A preset is nothing but other defaults: each of its options can be given beside it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from regularize import compare
from regularize.compare import CompareConfig


def miniature() -> CompareConfig:
    """Minutes on a laptop."""
    return CompareConfig()


def paper() -> CompareConfig:
    """The papers' own grid, one cell at a time."""
    from regularize.testbeds.paper import SEED, Paper

    out = Path("runs/paper")
    return CompareConfig(
        "paper",
        Paper.models,
        seeds=(SEED,),
        out=out / "compare",
        probes=out / "layer_sweep",
        jobs=1,
    )


PRESETS: dict[str, Callable[[], CompareConfig]] = {"miniature": miniature, "paper": paper}


def parse(words: Sequence[str]) -> CompareConfig:
    """The command line as a config; ends the process where it is none, or asks for help."""
    import tyro

    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", nargs="?", default="miniature")
    chosen = first.parse_known_args(list(words))[0].preset
    return tyro.cli(
        CompareConfig,
        args=list(words),
        default=PRESETS.get(chosen, miniature)(),  # of an unknown one tyro says what there are
        prog="python -m regularize.compare",
        description=compare.__doc__,
    )
