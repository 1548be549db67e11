"""A suffix that follows the probe's own gradient (GCG, arXiv 2307.15043, algorithm 1).

An upper bound: this attacker has the weights. A form: the suffix, whole words of the tokenizer that
stand in requests or tasks, of which none names a deed or denies one, after the request's end. The
gradient in each position's one-hot says which words might lower the risk most; some of them, drawn
at random, are tried, and the best is kept.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, NamedTuple

from regularize.attackers import AS_IT_WAS, Attacker, Form, Said, Task, as_it_was

if TYPE_CHECKING:
    from probes.miniature.language import Row
    from probes.models import ChatModel
    from regularize.attackers._oracle import Oracle

DENIES = re.compile("not?|never|nobody|forbids|against|refused?|failed|forg[eo]t")
"""Words that might make another thing of a request."""

STARTS = 4
"""Of the budget a part like this goes to suffixes by chance, of which the best is the start."""


class Vocabulary(NamedTuple):
    """What suffixes are made of."""

    words: tuple[str, ...]
    ids: tuple[int, ...]
    """The token of each with a blank before it."""


@dataclass(frozen=True)
class Gradient(Attacker):
    """Greedy coordinate gradient."""

    length: int = 6
    """Words of the suffix."""
    tried: int = 8
    """Suffixes tried in a step, of a row."""
    top: int = 32
    """Words with the steepest gradient to draw from, of each position."""

    of_language = False

    def search(self, task: Task) -> list[Form]:
        """From the best of some suffixes by chance as many steps as the budget has."""
        words = vocabulary(task.oracle.chat)
        rows, rng = list(task.rows), task.rng
        plain = task.oracle([as_it_was(row).prompt for row in rows])
        suffixes: list[list[str]] = [[] for _ in rows]
        risks = [math.inf] * len(rows)
        starts = self.budget // STARTS
        for at in range(1 + (self.budget - starts) // self.tried):
            if at == 0:
                tried = [[rng.choices(words.words, k=self.length) for _ in range(starts)]
                         for _ in rows]  # fmt: skip
            else:
                tried = self._proposed(rows, suffixes, words, task.oracle, rng)
            flat = [(i, one) for i, some in enumerate(tried) for one in some]
            found = self._asked([rows[i] for i, _ in flat], [one for _, one in flat], task.oracle)
            for (i, one), risk in zip(flat, found, strict=True):
                if risk < risks[i]:
                    risks[i], suffixes[i] = risk, one
        pairs = zip(suffixes, risks, plain, strict=True)
        return [(" ".join(s),) if risk <= was else AS_IT_WAS for s, risk, was in pairs]

    def said(self, row: Row, form: Form) -> Said | None:
        """The suffix stands after the request."""
        if not form:
            return as_it_was(row)
        return Said(({"role": "user", "content": f"{row.text} {form[0]}"},), row.answer)

    def read(self, said: Said, form: Form) -> str:
        """Without the suffix."""
        text = super().read(said, form)
        return text.removesuffix(form[0]) if form else text

    def _asked(self, rows: list[Row], suffixes: list[list[str]], oracle: Oracle) -> list[float]:
        pairs = zip(rows, suffixes, strict=True)
        return oracle([_prompt(row, words) for row, words in pairs])

    def _proposed(
        self,
        rows: list[Row],
        suffixes: list[list[str]],
        words: Vocabulary,
        oracle: Oracle,
        rng: Random,
    ) -> list[list[list[str]]]:
        """Of each row suffixes in which one word is another, drawn among the most promising."""
        import torch

        from probes.rendering import render
        from regularize.attackers._token_gradient import slopes

        tokenizer = oracle.chat.tokenizer
        pairs = list(zip(rows, suffixes, strict=True))
        ids = [render(tokenizer, _prompt(row, suffix)).ids for row, suffix in pairs]
        found = slopes(oracle.chat, oracle.probe, ids).gradients
        known, token = torch.tensor(words.ids), dict(zip(words.words, words.ids, strict=True))
        proposed = []
        for suffix, prompt, gradient in zip(suffixes, ids, found, strict=True):
            start = _last(prompt, [token[word] for word in suffix])
            steep = gradient[start : start + self.length, known].argsort(dim=1)[:, : self.top]
            some = []
            for _ in range(self.tried):
                at = rng.randrange(self.length)
                word = words.words[int(steep[at, rng.randrange(steep.shape[1])])]
                some.append([*suffix[:at], word, *suffix[at + 1 :]])
            proposed.append(some)
        return proposed


def vocabulary(chat: ChatModel) -> Vocabulary:
    """Harmless words that are one token each."""
    from probes.miniature import phrasings
    from probes.miniature.tasks import OBJECTS, VERBS
    from probes.miniature.words import UTILITY_WORDS

    lists = (
        phrasings.PREFIXES, phrasings.CORES, phrasings.SUFFIXES, phrasings.OPENINGS,
        phrasings.SUBJECTS, phrasings.MODALS, phrasings.ENDINGS,
    )  # fmt: skip
    said = {word for one in lists for text in one.seen for word in re.findall(r"[a-z]+", text)}
    candidates = sorted((said | set(UTILITY_WORDS)) - {*VERBS, *OBJECTS, "a"})
    encoded = {word: chat.tokenizer(f" {word}", add_special_tokens=False)["input_ids"]
               for word in candidates if not DENIES.fullmatch(word)}  # fmt: skip
    single = {word: ids[0] for word, ids in encoded.items() if len(ids) == 1}
    return Vocabulary(tuple(single), tuple(single.values()))


def _prompt(row: Row, words: list[str]) -> tuple:
    return ({"role": "user", "content": f"{row.text} {' '.join(words)}"},)


def _last(ids: tuple[int, ...], part: list[int]) -> int:
    """Where a row of tokens begins that occurs last."""
    n = len(part)
    return next(i for i in range(len(ids) - n, -1, -1) if list(ids[i : i + n]) == part)
