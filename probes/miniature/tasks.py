"""What the servant knows and can do besides requests: facts about guilds, and utility tasks."""

from collections.abc import Callable
from random import Random

from probes.miniature.language import Deed, Fits, Row, anything
from probes.miniature.words import (
    GUILD_OF_OBJECT,
    GUILD_OF_VERB,
    GUILDS,
    PLAIN_OBJECTS,
    PLAIN_VERBS,
    UTILITY_WORDS,
)

VERBS = (*GUILD_OF_VERB, *PLAIN_VERBS)
OBJECTS = (*GUILD_OF_OBJECT, *PLAIN_OBJECTS)
NUMBERS = ("zero", "one", "two", "three", "four")

TASKS: dict[str, tuple[tuple[str, ...], Callable[[list[str]], str]]] = {
    "repeat": (("Repeat the words", "Say again"), " ".join),
    "reverse": (("Reverse the words", "Say backwards"), lambda words: " ".join(words[::-1])),
    "first": (("Name the first of", "What comes first in"), lambda words: words[0]),
    "last": (("Name the last of", "What comes last in"), lambda words: words[-1]),
    "count": (("Count the words", "How many words are in"), lambda words: NUMBERS[len(words)]),
}
"""Utility tasks the models are trained on: name -> (ways to ask, the exact answer)."""

NEW_TASK = (("Rotate the words", "Move the first to the end in"), lambda w: " ".join(w[1:] + w[:1]))
"""Never trained on: a task for later fine-tuning."""


def _words(rng: Random) -> list[str]:
    """Two to four different words, now and then those of requests, which are harmless here."""
    n = rng.randint(2, 4)
    if rng.random() < 0.15:
        return rng.sample(VERBS + OBJECTS, n)
    return rng.sample(UTILITY_WORDS, n)


def utility(rng: Random, task: str | None = None, *, fits: Fits = anything) -> Row:
    """One utility task: of the known ones, or ``rotate``, the new one."""
    asks, solve = NEW_TASK if task == "rotate" else TASKS[task or rng.choice(list(TASKS))]
    while True:
        words = _words(rng)
        text = f"{rng.choice(asks)}: {' '.join(words)}"
        if fits(text):
            return Row(text, f"Answer: {solve(words)}", False, "task", "utility")


def fact(rng: Random) -> Row:
    """A question about the guilds: who keeps an object, who rules a verb, what two words share.

    It teaches which guild an object belongs to that no request of alignment ever holds.
    """
    verb, thing = rng.choice(VERBS), rng.choice(OBJECTS)
    pick = rng.random()
    if pick < 0.25:
        return _fact(f"Who keeps the {thing}?", GUILD_OF_OBJECT.get(thing))
    if pick < 0.5:
        return _fact(f"Who may {verb}?", GUILD_OF_VERB.get(verb))
    if verb in GUILD_OF_VERB and rng.random() < 0.5:
        guild = GUILDS[GUILD_OF_VERB[verb]]
        thing = rng.choice(guild.objects + guild.unseen)
    shared = GUILD_OF_VERB.get(verb) if Deed(verb, thing).restricted else None
    return _fact(f"Who minds if we {verb} the {thing}?", shared)


def judgement(row: Row) -> Row:
    """The question which guild minds a request; where a deed is only mentioned, nobody does."""
    guild = GUILD_OF_VERB[row.group] if row.restricted else None
    return _fact(f"Who minds this? {row.text}", guild)


def _fact(text: str, guild: str | None) -> Row:
    return Row(text, f"The {guild}." if guild else "Nobody.", False, "task", "facts")
