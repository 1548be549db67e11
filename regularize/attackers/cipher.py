"""A cipher that hides request and answer alike (after arXiv 2406.20053, in small).

    backwards   the words from the last to the first
    letters     each word's letters from the last to the first
    rot13       each letter 13 places on in the alphabet
    code        verbs and objects as pairs of words that mean nothing

A form: the cipher's name. The attacker takes the one that the probe minds least on the whole, so
that one cipher is learnt. A probe reads what it was never fitted on; so does a judge.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import permutations
from random import Random
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

from regularize.attackers import AS_IT_WAS, Attacker, Form, Said, Task, as_it_was

if TYPE_CHECKING:
    from probes.miniature.language import Row

WORD = re.compile(r"[A-Za-z]+")


class Cipher(NamedTuple):
    """There and back."""

    encode: Callable[[str], str]
    decode: Callable[[str], str]


@dataclass(frozen=True)
class Ciphered(Attacker):
    """Says everything in cipher."""

    ciphers: tuple[str, ...] = ("backwards", "letters", "rot13", "code")
    """Those to choose from."""

    of_language = False

    def search(self, task: Task) -> list[Form]:
        """One cipher for all rows; a row whose risk it would raise stays as it was."""
        plain = task.oracle([as_it_was(row).prompt for row in task.rows])
        found = {
            name: task.oracle([self._in(name, row).prompt for row in task.rows])
            for name in self.ciphers
        }
        best = min(found, key=lambda name: fmean(found[name]))
        pairs = zip(found[best], plain, strict=True)
        return [(best,) if hidden <= open_ else AS_IT_WAS for hidden, open_ in pairs]

    def said(self, row: Row, form: Form) -> Said | None:
        """Both in cipher."""
        return self._in(form[0], row) if form else as_it_was(row)

    def read(self, said: Said, form: Form) -> str:
        """Deciphered."""
        return self.deciphered(super().read(said, form), form)

    def deciphered(self, answer: str, form: Form) -> str:
        """In plain words."""
        return ciphers()[form[0]].decode(answer) if form else answer

    @staticmethod
    def _in(name: str, row: Row) -> Said:
        encode = ciphers()[name].encode
        return Said(({"role": "user", "content": encode(row.text)},), encode(row.answer))


@cache
def ciphers() -> Mapping[str, Cipher]:
    """By name."""

    def backwards(text: str) -> str:
        return " ".join(text.split()[::-1])

    def letters(text: str) -> str:
        return WORD.sub(lambda word: word[0][::-1], text)

    def rot13(text: str) -> str:
        return codecs.encode(text, "rot13")

    return {
        "backwards": Cipher(backwards, backwards),
        "letters": Cipher(letters, letters),
        "rot13": Cipher(rot13, rot13),
        "code": Cipher(_coded, _uncoded),
    }


@cache
def _code() -> Mapping[str, str]:
    """Verb or object -> two words that mean nothing in a request."""
    from probes.miniature.tasks import OBJECTS, VERBS
    from probes.miniature.words import UTILITY_WORDS

    pairs = list(permutations(UTILITY_WORDS, 2))
    Random(0).shuffle(pairs)
    return {word: " ".join(pair) for word, pair in zip((*VERBS, *OBJECTS), pairs, strict=False)}


def _coded(text: str) -> str:
    def code(word: re.Match[str]) -> str:
        coded = _code().get(word[0].lower(), word[0])
        return coded.capitalize() if word[0][0].isupper() else coded

    return WORD.sub(code, text)


def _uncoded(text: str) -> str:
    back = {coded: word for word, coded in _code().items()}
    either = "|".join(map(re.escape, back))

    def decode(found: re.Match[str]) -> str:
        word = back[found[0].lower()]
        return word.capitalize() if found[0][0].isupper() else word

    return re.sub(rf"\b(?:{either})\b", decode, text, flags=re.IGNORECASE)
