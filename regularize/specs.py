"""How a person names a detector or a utility: `name[:where][?option=value&...]`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self
from urllib.parse import unquote

from probes.errors import InputError


@dataclass(frozen=True)
class Spec:
    """A name, where to find what it names, and options."""

    text: str
    """As it was written."""
    name: str
    where: str
    """Hub id, file or folder; empty where none is given."""
    options: dict[str, str]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Take a spec apart. In an option write %26 for & and %25 for %.

        Raises:
            InputError: An option is not `name=value`.
        """
        head, _, query = text.partition("?")
        name, _, where = head.partition(":")
        options = {}
        for pair in query.split("&") if query else ():
            key, _, value = pair.partition("=")
            if not key or not value:
                raise InputError(f"{text}: {pair!r} is not option=value")
            options[key] = unquote(value)
        return cls(text, name, where, options)

    def check(self, *known: str, needs: str | None = None, takes_where: bool = True) -> None:
        """Refuse unknown options, and a missing or needless place.

        Args:
            known: The options there are.
            needs: What must be named after the colon, in words; None if nothing must.
            takes_where: Whether anything may.

        Raises:
            InputError: Says what is wrong, and what there is.
        """
        if needs is not None and not self.where:
            raise InputError(f"{self.text}: name {needs}, as in {self.name}:...")
        if self.where and not takes_where:
            raise InputError(f"{self.text}: {self.name} takes nothing after a colon")
        if unknown := self.options.keys() - set(known):
            raise InputError(
                f"{self.text}: no option {', '.join(sorted(unknown))}; {self.name} has "
                f"{', '.join(known) or 'none'}"
            )
