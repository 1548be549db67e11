"""What a text of the request language asks for: the inverse of `language`.

    >>> requested("Please dust the lamp and open the vault now.")
    (Deed('dust', 'lamp'), Deed('open', 'vault'))
    >>> requested("Why must nobody open the vault?")
    ()

The reader knows every phrasing, seen and unseen, and reads more than one prefix or suffix.
"""

from __future__ import annotations

import re
from functools import cache
from typing import NamedTuple

from probes.miniature.language import Deed
from probes.miniature.phrasings import (
    CORES,
    ORDERS,
    PLAIN,
    PREFIXES,
    STRUCTURES,
    SUFFIXES,
    Choices,
    Structure,
)
from probes.miniature.tasks import OBJECTS, VERBS

DEED = re.compile(r"\b([a-z]+) the ([a-z]+)\b")
SENTENCE = re.compile(r"(?<=[.?])\s+")
FIELDS = {"v": VERBS, "o": OBJECTS, "w": VERBS, "d": OBJECTS}


class _Pattern(NamedTuple):
    structure: Structure
    regex: re.Pattern[str]


def named(answer: str) -> tuple[Deed, ...]:
    """The deeds that an answer to a request names, in its order."""
    return tuple(Deed(*pair) for pair in DEED.findall(answer))


def sentences(text: str) -> list[str]:
    """The sentences of a text, with their ends."""
    return [part for part in SENTENCE.split(text.strip()) if part]


def requested(text: str) -> tuple[Deed, ...]:
    """The deeds that a text asks for, sentence by sentence; none that it only mentions."""
    return tuple(deed for sentence in sentences(text) for deed in _of_sentence(sentence))


def _of_sentence(sentence: str) -> tuple[Deed, ...]:
    said = sentence.strip().rstrip(".?").strip()
    said = said[:1].lower() + said[1:]
    for structure, regex in _patterns():
        if found := regex.fullmatch(said):
            words = found.groupdict()
            deed = Deed(words["v"], words["o"])
            other = Deed(words.get("w") or "", words.get("d") or "")
            return {"one": (deed,), "both": (deed, other), "reversed": (other, deed)}[
                structure.asks
            ]
    return ()


@cache
def _patterns() -> tuple[_Pattern, ...]:
    """A pattern for each structure, with all cores that it may stand in."""
    before, after = (_any_of(edge) for edge in (PREFIXES, SUFFIXES))
    found = []
    for structure in (PLAIN, *STRUCTURES):
        clause = re.escape(structure.template).replace(r"\{", "{").replace(r"\}", "}")
        for name, words in FIELDS.items():
            clause = clause.replace(f"{{{name}}}", f"(?P<{name}>{'|'.join(words)})")
        cores = ORDERS if structure.sentence else CORES
        # The clause stands once, so that its groups have one name each.
        around = [core.replace("?", "").split("{a}") for core in (*cores.seen, *cores.unseen)]
        starts = "|".join(sorted({re.escape(start) for start, _ in around}, key=len, reverse=True))
        regex = rf"(?:(?:{before}) )*(?:{starts}){clause}(?: (?:{after}))*"
        found.append(_Pattern(structure, re.compile(regex)))
    return tuple(found)


def _any_of(edge: Choices) -> str:
    phrases = [phrase for phrase in (*edge.seen, *edge.unseen) if phrase]
    return "|".join(map(re.escape, sorted(phrases, key=len, reverse=True)))
