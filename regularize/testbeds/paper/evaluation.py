"""What the papers' models are asked, and by whom their answers are judged.

    harmful        HEx-PHI's 300 prompts; after `hex-phi-half` those that were not trained on
    look-alike     XSTest's harmless prompts, to count needless refusals
    utility        GSM8K's test questions: exact match of the final number
    win-rate       Alpaca's requests that nothing is trained on, against Alpaca's own answers

The paper reports attack success on HEx-PHI, on which it trains too: its numbers are those of the
experiment all-harmful, and `disjoint` asks what was not trained on. On split validation the prompts
are JailbreakBench's, harmful and benign, GSM8K's train questions, and others of Alpaca's that are
held out.

Answers to harmful prompts are drawn at temperature .6 within top_p .9, 512 tokens at most, as Qi et
al. 2024 (arXiv 2310.03693) do and a script beside the paper's code; how the paper generates is not
known. The others are greedy. The first of `JUDGES` decides the metrics under their plain names. It
is the paper's judge, gpt-oss-20b, under our own rubric (`detectors.judge`); which score the paper
counts as success is not known, and here it is 5 of 5. Refusal phrases stand beside it, as
`attack_success_phrases`.

The protocol of the paper's win rate on Alpaca is not known. Here the same judge compares each
answer with Alpaca's own, in both orders; what holds in one order only counts half
(`regularize.win_rate`). The rows are held out of all training data and anchors
(`training.held_out`); the probe, which sees no answers, may have read some of the requests. A model
that was trained on Alpaca has learnt to write as its opponent does. Where the first of `JUDGES` is
no chat model, there is no win rate.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from probes.models import ChatModel
from regularize import asked as asking
from regularize import detectors, measures, utilities, win_rate
from regularize.asked import Asked
from regularize.generation import answers
from regularize.measures import MINIATURE, Share
from regularize.outcomes import Outcome
from regularize.testbeds import Split
from regularize.testbeds.paper.training import HALF, is_trained
from regularize.win_rate import Winner

JUDGES: tuple[str, ...] = ("judge:openai/gpt-oss-20b?tokens=4096", "phrases")
"""As `regularize.evaluate` has detectors."""
SETS: dict[Split, tuple[str, str, str]] = {
    "test": ("hex-phi", "xstest", "gsm8k"),
    "validation": ("jailbreakbench", "jailbreakbench", "gsm8k?split=train"),
}
"""Harmful prompts, harmless ones, questions."""
NEW_TOKENS = 512
TEMPERATURE = 0.6


@dataclass(frozen=True)
class Answered:
    """One prompt and its answer."""

    kind: str
    """harmful, look-alike, utility or win-rate."""
    prompt: str
    answer: str
    outcomes: dict[str, Outcome | None]
    """By judge; None where it could not say."""
    correct: bool | None
    """Of a question."""
    winner: Winner | None = None
    """Of a win rate; None where the judge could not say."""


@dataclass(frozen=True)
class Evaluation:
    """Answers to all kinds of prompts."""

    answered: tuple[Answered, ...]
    tells: dict[str, tuple[Outcome, ...]]
    """What each judge can tell apart."""

    @property
    def shares(self) -> list[Share]:
        """attack_success, refusal, incoherent, harmless, over_refusal, utility; ..._phrases.

        And those of `win_rate.shares`.
        """
        questions = [one for one in self.answered if one.kind == "utility"]
        found = []
        for i, judge in enumerate(self.tells):
            suffix = f"_{judge.partition(':')[0]}" if i else ""
            found += [one._replace(metric=f"{one.metric}{suffix}") for one in self._judged(judge)]
        found.append(measures.share("utility", (bool(one.correct) for one in questions)))
        pairs = [one.winner for one in self.answered if one.kind == "win-rate"]
        return [*found, *(win_rate.shares(pairs) if pairs else ())]

    def records(self) -> list[dict[str, object]]:
        """One an answer."""
        return [asdict(one) for one in self.answered]

    def _judged(self, judge: str) -> Iterator[Share]:
        by_kind: dict[str, list[Outcome | None]] = {"harmful": [], "look-alike": []}
        for one in self.answered:
            if one.kind in by_kind:
                by_kind[one.kind].append(one.outcomes[judge])
        yield from measures.on_harmful(by_kind["harmful"], tells=self.tells[judge])
        if "refusal" in self.tells[judge]:
            yield from measures.on_look_alikes(by_kind["look-alike"])


def evaluate_paper(
    chat: ChatModel, *, attack: str = "none", n: int = 300, seed: int = 0, split: Split = "test"
) -> Evaluation:
    """Ask `n` prompts of each kind, or as many as there are.

    Args:
        chat: One of the models, fine-tuned or not.
        attack: What it was fine-tuned on.
        n: Prompts of each kind at most.
        seed: Draws them, and the answers to the harmful ones.
        split: test, or validation.

    Raises:
        InputError: A set cannot be read, or a judge cannot be used.
    """
    asked = _prompts(attack, n, seed, split)
    harmful = [one for one in asked if one.kind == "harmful"]
    others = [one for one in asked if one.kind != "harmful"]
    made = [
        *answers(
            chat, [one.messages for one in harmful], max_new_tokens=NEW_TOKENS,
            temperature=TEMPERATURE, seed=seed,
        ),
        *answers(chat, [one.messages for one in others], max_new_tokens=NEW_TOKENS),
    ]  # fmt: skip
    asked = [*harmful, *others]
    found: list[dict[str, Outcome | None]] = [{} for _ in asked]
    judged = [i for i, one in enumerate(asked) if one.kind in ("harmful", "look-alike")]
    pairs = [i for i, one in enumerate(asked) if one.kind == "win-rate"]
    tells: dict[str, tuple[Outcome, ...]] = {}
    winners: dict[int, Winner | None] = {}
    for judge in JUDGES:
        compared = pairs if judge == JUDGES[0] else []
        outcomes, tells[judge], won = _judge(
            judge, [(asked[i], made[i]) for i in judged], [(asked[i], made[i]) for i in compared]
        )
        for i, outcome in zip(judged, outcomes, strict=True):
            found[i][judge] = outcome
        winners.update(zip(compared, won, strict=True))
    return Evaluation(
        tuple(
            Answered(
                one.kind, one.text, answer, outcomes,
                one.correct(answer) if one.correct else None, winners.get(i),
            )
            for i, (one, answer, outcomes) in enumerate(zip(asked, made, found, strict=True))
        ),
        tells,
    )  # fmt: skip


def _judge(
    spec: str, judged: Sequence[tuple[Asked, str]], pairs: Sequence[tuple[Asked, str]]
) -> tuple[list[Outcome | None], tuple[Outcome, ...], list[Winner | None]]:
    """Outcomes, all that there could be, and winners.

    The judge is in memory no longer than it judges.
    """
    if not any(answer.strip() for _, answer in (*judged, *pairs)):  # nothing to load a judge for
        lost = [win_rate.unasked(answer, one.reference or "") for one, answer in pairs]
        return ["incoherent"] * len(judged), MINIATURE, lost
    judge = detectors.open(spec)
    outcomes = judge.judge([one.text for one, _ in judged], [answer for _, answer in judged])
    won: list[Winner | None] = []
    if pairs:
        won = win_rate.winners(
            win_rate.opened(spec, [judge]),
            [one.text for one, _ in pairs],
            [answer for _, answer in pairs],
            [one.reference or "" for one, _ in pairs],
        )
    return outcomes, judge.tells, won


def _prompts(attack: str, n: int, seed: int, split: Split) -> list[Asked]:
    harmful, harmless, questions = SETS[split]
    found = asking.from_set("harmful", harmful, label=1, n=None, seed=seed)
    if attack == HALF:
        found = [one for one in found if not is_trained(one.text)]
    pairs: list[Asked] = []
    if JUDGES[0].startswith("judge:"):  # a chat model, which can compare
        pairs = asking.from_win_rate(win_rate.ALPACA, n=n, seed=seed, split=split)
    return [
        *utilities.sample(found, n, seed),
        *asking.from_set("look-alike", harmless, label=0, n=n, seed=seed),
        *asking.from_utility("utility", utilities.open(questions), n=n, seed=seed),
        *pairs,
    ]
