"""Finds what a folder of one-file plug-ins holds: the module's name is its name everywhere."""

import functools
import importlib
import operator
import pkgutil
from types import ModuleType
from typing import Annotated, Any, TypeVar

T = TypeVar("T")


def found(package: ModuleType, base: type[T]) -> dict[str, type[T]]:
    """The one subclass of `base` that each module beside a package's `__init__` defines, by name.

    A module `safety_tokens` is called `safety-tokens`; one that begins with `_` is none.

    Raises:
        TypeError: A module defines none, or several.
    """
    classes = {}
    for info in pkgutil.iter_modules(package.__path__):
        if info.name.startswith("_"):
            continue
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        own = [
            value
            for value in vars(module).values()
            if isinstance(value, type)
            and issubclass(value, base)
            and value.__module__ == module.__name__
            and not value.__name__.startswith("_")
        ]
        if len(own) != 1:
            raise TypeError(f"{module.__name__} should define one {base.__name__}, not {len(own)}")
        classes[info.name.replace("_", "-")] = own[0]
    return classes


def name_of(plugin: object) -> str:
    """What a plug-in is called: `AdaptiveKL` of `defences/adaptive_kl.py` is `adaptive-kl`."""
    return type(plugin).__module__.rpartition(".")[2].replace("_", "-")


def choices(package: ModuleType, base: type[T]) -> Any:
    """The plug-ins as a type for a command line: `critic:probe --critic.path ...` (tyro)."""
    import tyro

    kinds = [
        Annotated[kind, tyro.conf.subcommand(name)] for name, kind in found(package, base).items()
    ]
    return functools.reduce(operator.or_, kinds)
