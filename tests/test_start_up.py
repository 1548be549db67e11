"""What commands import: to explain themselves no more than the parser of their arguments."""

from __future__ import annotations

import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("probes", "regularize", "analysis")


def commands() -> list[str]:
    """Every module of the rooms that can be run."""
    found = []
    for room in ROOMS:
        for file in sorted((ROOT / room).rglob("*.py")):
            if 'if __name__ == "__main__":' in file.read_text():
                parts = file.relative_to(ROOT).with_suffix("").parts
                found.append(".".join(parts[:-1] if parts[-1] == "__main__" else parts))
    return found


MISTAKES = {
    "probes.category_probe": ("--layers", "-1"),
    "probes.causal_check": ("--n", "0"),
    "probes.layer_sweep": ("--folds", "1"),
    "probes.miniature": ("--threads", "0"),
    "regularize.beta_search": ("--n", "0"),
    "regularize.chain": ("--links", "0"),
    "regularize.compare": ("--jobs", "0"),
    "regularize.cost": ("--rounds", "0"),
    "regularize.evaluate": ("--n", "0"),
    "regularize.judge_calls": ("--threshold", "2"),
    "regularize.train": ("--n-anchors", "0"),
}
"""What a command can refuse by its arguments alone."""


@cache
def ended(module: str, *arguments: str) -> tuple[int, str, frozenset[str]]:
    """A command's exit code, what it wrote on stderr, and the packages that it has loaded.

    Packages are other people's: neither this project's nor Python's own.
    """
    code = (
        "import atexit, runpy, sys\n"
        "def tell():\n"
        "    found = {n.partition('.')[0] for n, m in list(sys.modules.items()) if m is not None}\n"
        f"    theirs = found - sys.stdlib_module_names - set({ROOMS!r})\n"
        "    sys.__stderr__.write('LOADED ' + ' '.join(sorted(theirs)))\n"
        "atexit.register(tell)\n"
        f"sys.argv = ['x', *{arguments!r}]\n"
        f"runpy.run_module({module!r}, run_name='__main__', alter_sys=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    said, _, loaded = done.stderr.rpartition("LOADED ")
    return done.returncode, said, frozenset(loaded.split())


@cache
def parser() -> frozenset[str]:
    """What a command of nothing loads, and what the parser takes where types are many."""
    return ended("tests.bare_command", "--help")[2] | {"rich", "typeguard"}


def test_the_list_is_complete_and_could_be_longer() -> None:
    assert set(MISTAKES) < set(commands()) and "analysis" in commands()
    assert not {"torch", "numpy", "pandas", "transformers"} & parser()
    assert {"torch", "numpy", "transformers"} <= ended("probes.models")[2] - parser()  # control


@pytest.mark.parametrize("command", [*commands(), "analysis report"])
def test_help_loads_the_parser_and_no_more(command: str) -> None:
    code, _, loaded = ended(*command.split(), "--help")
    assert code == 0 and "tyro" in loaded
    assert loaded <= parser()


@pytest.mark.parametrize("command", commands())
def test_nor_does_an_unknown_flag(command: str) -> None:
    code, said, loaded = ended(command, "--no-such-flag", "1")
    assert code == 2 and "no-such-flag" in said
    assert loaded <= parser()


@pytest.mark.parametrize("command", MISTAKES)
def test_nor_does_a_mistake_that_the_arguments_show(command: str) -> None:
    code, said, loaded = ended(command, *MISTAKES[command])
    assert code == 2 and said.startswith("error: --")
    assert loaded <= parser()


def test_what_is_drawn_and_what_is_evaluated_needs(tmp_path: Path) -> None:
    """The figures need no model; a model that is asked, no figures, training or data sets."""
    shutil.copy(ROOT / "figures" / "costs.csv", tmp_path)
    code, said, drawing = ended("analysis", "--results", str(tmp_path), "--out", str(tmp_path))
    assert code == 0, said
    assert {"pandas", "matplotlib"} <= drawing
    assert not {"torch", "transformers", "sklearn", "datasets", "peft", "tokenizers"} & drawing
    code, said, asking = ended("regularize.evaluate", "--n", "1", "--out", str(tmp_path / "out"))
    assert code == 0, said
    assert {"torch", "transformers"} <= asking
    assert not {
        "peft", "datasets", "sklearn", "matplotlib", "seaborn", "transformer_lens", "nnsight",
        "joblib", "openai", "tiktoken", "vllm", "datasketch",
    } & asking  # fmt: skip
