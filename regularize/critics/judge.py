"""The judge critic: a language model reads each exchange (arXiv 2602.17546).

s = (score - 1) / 4 of a score from 1 to 5. With --critic.base-url the judge is behind a server that
speaks OpenAI's chat completions; without, it is a transformers model that runs here.

    critic:judge --critic.base-url http://localhost:8000/v1 --critic.model openai/gpt-oss-20b
    critic:judge --critic.model ./my-judge
    critic:judge --critic.model scripted?recall=.9&false_alarms=.05

mode data: the data's own answers are judged once, and the risks are constants. mode live, which the
paper describes: before training the reference's own answers to the training prompts are judged, and
every so many steps those of the model in training. How the two scores make one, the paper does not
say; taken here is the larger, so that a row that the model has begun to comply with is held, and
one that the reference complies with itself is never let go. This is our reading.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from probes.errors import InputError
from regularize.critics import Critic, Live, Risks

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float64

    from probes.models import ChatModel
    from regularize.data import Example
    from regularize.judging import Exchange, Judge

Combine = Literal["larger", "mean", "model"]


@dataclass(frozen=True)
class JudgeCritic(Critic):
    """Risk = how harmful a judge finds the exchange."""

    model: str = "openai/gpt-oss-20b"
    """The judge: as its server calls it; without a server a hub id or folder; or
    scripted[?recall=...&false_alarms=...], a rule that reads the miniatures' language."""
    threshold: float = 0.5
    """Risk above which an example is flagged."""
    base_url: str | None = None
    """Address of a server such as http://localhost:8000/v1. Default: the judge runs here."""
    api_key_env: str | None = None
    """Environment variable that holds the server's key. The key is sent to that server, and saved
    nowhere."""
    revision: str | None = None
    """Of the judge's weights: a hub revision; for a server any name of theirs, under which what it
    has said is found again at another address."""
    rubric: Path | None = None
    """A text file with {prompt} and {answer} where the exchange goes. What a verdict looks like is
    said after it. Default: the one that comes with the package."""
    mode: Literal["data", "live"] = "data"
    """data: the data's own answers, once. live: the reference's and the training model's."""
    every: int = 50
    """Optimizer steps after which the training model's answers are judged anew (live)."""
    combine: Combine = "larger"
    """Of the reference's and the training model's s: the larger, their mean, or the model's
    (live)."""
    answer_tokens: int = 128
    """Longest answer that is generated to be judged (tokens; live)."""
    on_judge_failure: Literal["stop", "most-cautious"] = "stop"
    """Where a verdict cannot be read: stop, and list the rows; or give them s = 1, and count
    them. A server that cannot be reached always stops the run."""
    attempts: int = 3
    """Times that a question is put at most where the verdict cannot be read (server)."""
    max_tokens: int = 1024
    """Longest verdict (tokens; server). Judges that think need room for it."""
    body: tuple[str, ...] = ()
    """More fields of a request, as NAME=JSON, such as 'reasoning_effort="low"'; NAME=null leaves
    one out that is sent otherwise, such as temperature (server)."""
    concurrency: int = 16
    """Questions at a time (server)."""
    timeout: float = 120.0
    """Seconds for one verdict (server)."""
    retries: int = 6
    """Times that a request is repeated where the server is busy, fails or is not there."""
    backoff: float = 1.0
    """Seconds before the first of these, doubled each time, unless the server asks for others."""
    price_in: float | None = None
    """Price of a million tokens that the judge reads, in any currency, to show the cost."""
    price_out: float | None = None
    """Price of a million tokens that it writes."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the weights of a judge that runs here."""
    least_mass: float = 0.5
    """Probability that the scores 1 to 5 have together at least, in a judge that runs here."""
    cache: Path = Path("runs/cache/judge")
    """Folder for what judges have said: no answer is paid for twice."""

    incidental = (
        "base_url", "api_key_env", "on_judge_failure", "attempts", "concurrency", "timeout",
        "retries", "backoff", "price_in", "price_out", "cache",
    )  # fmt: skip

    def check(self) -> None:
        """Raise InputError for options that mean nothing."""
        for name, least in (
            ("every", 1), ("answer_tokens", 1), ("attempts", 1), ("max_tokens", 1),
            ("concurrency", 1), ("retries", 0), ("backoff", 0),
        ):  # fmt: skip
            if getattr(self, name) < least:
                flag = name.replace("_", "-")
                raise InputError(f"--critic.{flag} {getattr(self, name)}: must be at least {least}")
        if self.timeout <= 0:
            raise InputError(f"--critic.timeout {self.timeout}: must be more than zero")
        for name in ("threshold", "least_mass"):
            if not 0 <= getattr(self, name) <= 1:
                flag = name.replace("_", "-")
                raise InputError(f"--critic.{flag} {getattr(self, name)}: must be from 0 to 1")
        if (self.price_in is None) != (self.price_out is None):
            raise InputError("--critic.price-in and --critic.price-out go together")
        if self.base_url is None and self.api_key_env is not None:
            raise InputError("--critic.api-key-env: a key is for a server; give --critic.base-url")
        self._judge()

    @property
    def sources(self) -> Mapping[str, str]:
        """The rubric, by its hash."""
        from regularize.judging.rubric import Rubric

        return {"rubric_sha256": Rubric.load(self.rubric).hash}

    def assess(self, examples: Sequence[Example], chat: ChatModel) -> Risks:
        """The data's own answers are judged, or, live, the reference's."""
        self.check()
        answers = [one.answer for one in examples]
        if self.mode == "live":
            answers = self._generated(examples, chat)
        return self._risks(self._judge(), _exchanges(examples, answers))

    def live(self, examples: Sequence[Example], first: Risks) -> Live | None:
        """The training model's answers, judged every so many steps beside the reference's."""
        if self.mode == "data":
            return None
        judge = self._judge()

        def again(chat: ChatModel) -> Risks:
            from regularize.generation import answers

            prompts = [one.prompt for one in examples]
            made = answers(chat, prompts, max_new_tokens=self.answer_tokens)
            found = self._risks(judge, _exchanges(examples, made))
            s = combined(self.combine, first.s, found.s)
            return found._replace(s=s, flagged=s > self.threshold)

        return Live(self.every, again)

    def _generated(self, examples: Sequence[Example], chat: ChatModel) -> list[str]:
        from regularize.remembered import replies

        prompts = [one.prompt for one in examples]
        return replies(chat, prompts, self.answer_tokens, self.cache)

    def _risks(self, judge: Judge, exchanges: Sequence[Exchange]) -> Risks:
        import numpy as np

        from regularize.judging import LEAST, MOST, asking
        from regularize.judging.cache import Cache

        cautious = self.on_judge_failure == "most-cautious"
        cache = None if judge.free else Cache(self.cache)
        verdicts, faults, tally = asking.judged(
            judge, exchanges, cache=cache, attempts=self.attempts, patient=cautious
        )
        if faults and (not cautious or len(faults) == len(exchanges)):
            raise InputError(
                f"{judge.name} gave no verdict on {len(faults)} of {len(exchanges)} rows:\n"
                f"{asking.listed(faults)}\nWhat it has said is kept, and nothing is asked twice. "
                "Mend or leave out these rows, take a better judge, ask more often (--critic."
                "attempts)"
                + ("" if cautious else ", or give --critic.on-judge-failure most-cautious")
            )
        scores = np.array([MOST if one.score is None else one.score for one in verdicts])
        s = (scores.astype(np.float64) - LEAST) / (MOST - LEAST)
        failed = np.zeros(len(s), dtype=bool)
        failed[[fault.place for fault in faults]] = True
        counts: dict[str, float] = asdict(tally)
        if self.price_in is not None and self.price_out is not None:
            paid = self.price_in * tally.prompt_tokens + self.price_out * tally.completion_tokens
            counts["cost"] = paid / 1e6
        return Risks(s, s > self.threshold, failed if faults else None, counts)

    def _judge(self) -> Judge:
        from regularize.judging.local import Local
        from regularize.judging.rubric import Rubric
        from regularize.judging.scripted import Scripted
        from regularize.judging.server import Server
        from regularize.specs import Spec

        if self.base_url is None and (spec := Spec.parse(self.model)).name == "scripted":
            return Scripted.of(spec)
        rubric = Rubric.load(self.rubric)
        if self.base_url is None:
            return Local(
                self.model, rubric, self.revision, dtype=self.dtype, least_mass=self.least_mass
            )
        server = Server(
            self.model, self.base_url, rubric, self.api_key_env, self.revision,
            max_tokens=self.max_tokens, body=_fields(self.body), concurrency=self.concurrency,
            timeout=self.timeout, retries=self.retries, backoff=self.backoff,
        )  # fmt: skip
        server.check()
        return server


def combined(
    how: Combine, reference: Float64[np.ndarray, "example"], model: Float64[np.ndarray, "example"]
) -> Float64[np.ndarray, "example"]:
    """One s of the reference's and the training model's."""
    import numpy as np

    if how == "mean":
        return (reference + model) / 2
    return np.maximum(reference, model) if how == "larger" else model


def _exchanges(examples: Sequence[Example], answers: Sequence[str]) -> list[Exchange]:
    from regularize.judging import Exchange

    return [
        Exchange(one.prompt, answer, one.where)
        for one, answer in zip(examples, answers, strict=True)
    ]


def _fields(body: Sequence[str]) -> dict[str, object]:
    """--critic.body, read."""
    found: dict[str, object] = {}
    for text in body:
        name, _, value = text.partition("=")
        if name in ("messages", "model", "n", "stream"):
            raise InputError(f"--critic.body {text}: {name} is not to be changed")
        try:
            found[name] = json.loads(value)
        except ValueError as error:
            raise InputError(
                f"--critic.body {text}: give NAME=JSON, such as 'reasoning_effort=\"low\"'"
            ) from error
    return found
