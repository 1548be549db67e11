"""How every command ends: a person's mistake is one message and exit code 2, never a traceback."""

import sys
from collections.abc import Callable
from typing import TypeVar

from probes.errors import InputError

Config = TypeVar("Config")


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
