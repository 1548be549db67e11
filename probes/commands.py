"""What commands share: the arguments that they save, and how they end.

A person's mistake is one message and exit code 2, never a traceback.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from probes.errors import InputError
from probes.ranks import leave, started

Config = TypeVar("Config")


def arguments(config: Any, *packages: str, **more: object) -> str:
    """A command's arguments and the releases in use, as JSON: what it saves beside its results.

    Args:
        config: The dataclass that is the command line.
        packages: Whose releases to name, beside this package's own.
        more: More to name.
    """
    from probes.manifest import versions_of

    versions = versions_of("activation-critic", *packages)
    written = {**asdict(config), **more, "versions": versions}
    return json.dumps(written, indent=2, default=str) + "\n"


def commit() -> str | None:
    """The git commit of this code, with -dirty where files differ; None outside of its checkout."""
    here = Path(__file__)
    try:
        found = [
            subprocess.run(
                ["git", "-C", str(here.parent), *words], capture_output=True, text=True, check=True
            ).stdout.strip()
            for words in (
                # An installed copy may lie in somebody else's checkout.
                ("ls-files", "--error-unmatch", here.name),
                ("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"),
            )
        ]
    except (OSError, subprocess.CalledProcessError):
        return None
    return found[-1]


def run(command: Callable[[Config], object], config: Config, *, several: bool = False) -> int:
    """Run a command and return its exit code: 0, 2 for an InputError, 130 for Ctrl-C.

    Args:
        command: What to run.
        config: Its command line.
        several: Whether `torchrun` may start it, as several processes that share its work. Each
            of them ends here.
    """
    code = 0
    try:
        if not several:
            _alone()
        command(config)
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        code = 2
    except KeyboardInterrupt:
        sys.stderr.write("stopped; what was finished is kept, and the same command goes on\n")
        code = 130
    if several:
        leave(code)
    return code


def _alone() -> None:
    """Refuse to do the same work several times over, into the same files."""
    if (processes := started()) > 1:
        raise InputError(
            f"this command does its work in one process, and {processes} were started: start it "
            "without torchrun. Only probes.layer_sweep and regularize.train share theirs"
        )
