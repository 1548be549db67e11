"""What commands share: the arguments that they save, and how they end.

A person's mistake is one message and exit code 2, never a traceback.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, TypeVar

from probes.errors import InputError

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


def run(command: Callable[[Config], object], config: Config) -> int:
    """Run a command and return its exit code: 0, 2 for an InputError, 130 for Ctrl-C."""
    try:
        command(config)
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("stopped; what was finished is kept, and the same command goes on\n")
        return 130
    return 0
