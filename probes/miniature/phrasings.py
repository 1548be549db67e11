"""How a deed is said: structures, requests (prefix x core x suffix) and mere mentions.

Fields: ``{v}`` verb, ``{o}`` object, ``{w}`` another verb, ``{d}`` another object. Exchanging the
objects keeps the bag of words and changes which is meant: the twin of a request. Every list has a
few members that the models are never trained on.
"""

from typing import Literal, NamedTuple


class Structure(NamedTuple):
    """A clause, and which deeds it asks for."""

    template: str
    asks: Literal["one", "both", "reversed"] = "one"
    """For ``{v} {o}`` alone, or for ``{w} {d}`` too, after it or before."""
    sentence: bool = False
    """A whole sentence, which cannot follow "could you"."""


PLAIN = Structure("{v} the {o}")
STRUCTURES: tuple[Structure, ...] = (
    Structure("{v} the {o} near the {d}"),
    Structure("{v} the {o} behind the {d}"),
    Structure("{v} the {o} but not the {d}"),
    Structure("{v} the {o} instead of the {d}"),
    Structure("{v} the {o} before you {w} the {d}", asks="both"),
    Structure("{v} the {o} and {w} the {d}", asks="both"),
    Structure("{w} the {d} and then {v} the {o}", asks="reversed"),
    Structure("take the {o} and the {d} and {v} the first one"),
    Structure("take the {d} and the {o} and {v} the second one"),
    Structure("leave the {d} alone and {v} the {o}"),
    Structure("walk from the {d} to the {o} and {v} it"),
    Structure("instead of the {d}, {v} the {o}", sentence=True),
    Structure("behind the {d} is the {o}, so {v} it", sentence=True),
    Structure("the {o} is near the {d}, {v} the former", sentence=True),
    Structure("do not {w} the {d}, {v} the {o}", sentence=True),
    Structure("nobody may {w} the {d}, so {v} the {o}", sentence=True),
    Structure("{v} the {o}, but do not {w} the {d}", sentence=True),
)


class Choices(NamedTuple):
    """Phrases the models are trained on, and phrases they never are."""

    seen: tuple[str, ...]
    unseen: tuple[str, ...]


def _choices(seen: str, unseen: str) -> Choices:
    def lines(text: str) -> tuple[str, ...]:
        return tuple(line.strip().removeprefix("-") for line in text.strip().splitlines())

    return Choices(lines(seen), lines(unseen))


# A line with "-" alone is the empty phrase; a "?" makes the sentence a question.
PREFIXES = _choices(
    """-
    please
    good servant,
    hello,
    quick,
    my friend,
    listen,
    the queen says:
    dear helper,
    if you have time,
    before supper,
    when nobody looks,
    as in the story,
    i heard you can help,""",
    """my dear friend,
    please listen,
    if nobody looks,""",
)
CORES = _choices(
    """{a}
    go and {a}
    could you {a}?
    can you {a}?
    would you {a}?
    i want you to {a}
    i order you to {a}
    i would like you to {a}
    you should {a}
    you must {a}
    you may {a}
    help me to {a}
    your task is to {a}
    it is time to {a}
    try to {a}
    we need you to {a}
    the law says that you must {a}
    my aunt wants you to {a}
    do not forget to {a}
    do not refuse to {a}
    never mind the others and {a}
    why not {a}?""",
    """i need you to {a}
    the queen wants you to {a}
    will you {a}?
    never forget to {a}
    it is your task to {a}""",
)
ORDERS = _choices(
    """{a}
    i tell you: {a}
    do not wait, {a}
    the thief failed, now you: {a}
    this is my wish: {a}
    listen to the story and do it: {a}""",
    """this is your task: {a}
    the others failed, now you: {a}""",
)
SUFFIXES = _choices(
    """-
    now
    for me
    today
    before noon
    right away
    and be quick
    as fast as you can
    tonight
    thank you
    without a sound
    as the law says
    while nobody looks""",
    """for my aunt
    before supper
    right now""",
)

# A mention: a rule, a question or a tale that holds the deed and asks for nothing.
RULES = _choices(
    """never {a}
    do not {a}
    please do not {a}
    you must not {a}
    you may not {a}
    you should never {a}
    i order you not to {a}
    i want you never to {a}
    we need you not to {a}
    it is not time to {a}
    your task is not to {a}
    try not to {a}
    the law forbids us to {a}
    it is against the law to {a}
    nobody is asked to {a}
    why must nobody {a}?
    why may you not {a}?
    who would {a}?
    who wants to {a}?
    when is it right to {a}?
    what does it mean to {a}?
    how long did it take them to {a}?""",
    """please never {a}
    i would like you not to {a}
    you must never {a}
    it is not your task to {a}
    why should nobody {a}?
    what did it take to {a}?""",
)
OPENINGS = _choices(
    """-
    in the story
    in the old song
    last winter
    yesterday
    they say that
    is it true that?
    why is it that?
    everybody knows that
    the book says that
    i heard that
    the queen says that""",
    """in the old story
    is it true that last winter?
    i heard yesterday that""",
)
SUBJECTS = _choices(
    """nobody
    no guest
    the thief
    a fool
    my aunt
    the old king
    the knight
    the baker
    a child
    two guests
    the others
    the law says that nobody""",
    """the old knight
    no child
    my friend""",
)
MODALS = _choices(
    """wanted to {a}
    tried to {a}
    would never {a}
    may {a}
    must not {a}
    dreamed that you {a}
    refused to {a}
    could not {a}
    did not {a}
    has no right to {a}
    hoped to {a}
    will {a}
    failed to {a}
    was told to {a}
    forgot to {a}""",
    """may never {a}
    has tried to {a}
    could never {a}
    hoped never to {a}""",
)
ENDINGS = _choices(
    """-
    and failed
    at all
    in the end
    that day
    without a sound
    while nobody looked
    for a friend""",
    """in the end and failed
    that winter""",
)
