"""What a person sees before and during training: the data, their risks, the progress."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase, Trainer
from transformers.trainer_callback import PrinterCallback, ProgressCallback, TrainerCallback

from probes.models import ChatModel
from regularize.data import Example, supervised
from regularize.prepare import Prepared

SPANS = 3
EXTREMES = 5
BINS = 10
BAR = 40


def data(prepared: Prepared, chat: ChatModel, console: Console) -> None:
    """How much there is, and the very text that is learnt of a few rows."""
    n, n_tokens = len(prepared.encoded), sum(map(_answer_tokens, prepared.encoded))
    shortened = sum(one.shortened for one in prepared.encoded)
    console.print(
        f"{n} rows, {n_tokens} answer tokens"
        + (f"; {shortened} answers lose their end to --max-length" if shortened else "")
    )
    smuggled = [example.where for example in prepared.examples if _special(example, chat.tokenizer)]
    if smuggled:
        console.print(
            f"{len(smuggled)} rows hold special tokens in their text, by which a turn can be "
            f"smuggled in that no critic reads: {escape(_clip('; '.join(smuggled), 120))}"
        )
    for example, one in list(zip(prepared.examples, prepared.encoded, strict=True))[:SPANS]:
        console.print(
            f"  learnt of {escape(example.where)}: "
            f"{escape(_clip(repr(supervised(one, chat.tokenizer)), 70))}"
        )


def risks(prepared: Prepared, console: Console) -> None:
    """A histogram of s, and the riskiest and the least risky rows, to be looked at."""
    s = prepared.risks.s
    labels = [example.label for example in prepared.examples]
    known = None not in labels
    table = Table(title="risk s of the training rows", title_justify="left")
    for heading, justify in (("s", "left"), ("rows", "right")):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    if known:
        table.add_column("labelled harmful", justify="right")
    table.add_column("")
    counts, edges = np.histogram(s, bins=BINS, range=(0, 1))
    place = np.minimum((s * BINS).astype(int), BINS - 1)
    for i, count in enumerate(counts):
        harmful = [str(sum(labels[row] or 0 for row in np.flatnonzero(place == i)))]
        bar = "█" * int(np.ceil(BAR * count / max(counts)))
        cells = (f"{edges[i]:.1f} to {edges[i + 1]:.1f}", str(count))
        table.add_row(*cells, *(harmful if known else []), bar)
    console.print(table)
    if prepared.risks.flagged is not None:
        n = int(prepared.risks.flagged.sum())
        console.print(f"{n} of {len(s)} rows lie above the critic's threshold")
    for note in prepared.risks.notes:
        console.print(escape(note))
    if prepared.risks.tally is not None:
        tally = prepared.risks.tally.items()
        took = ", ".join(f"{name.replace('_', ' ')} {number:,.12g}" for name, number in tally)
        console.print(f"what the critic took: {took}")
    if prepared.risks.failed is not None:
        cautious = int(prepared.risks.failed.sum())
        console.print(f"{cautious} rows without a verdict have s = 1, out of caution")
    if not prepared.kept.all():
        console.print(f"{int((~prepared.kept).sum())} rows are left out of training")
    order = np.argsort(-s, kind="stable")
    n = min(EXTREMES, len(order) // 2)
    for title, chosen in (("riskiest", order[:n]), ("least risky", order[::-1][:n])):
        console.print(f"{title}:")
        for row in chosen:
            example = prepared.examples[row]
            text = _clip(" ".join(example.text.split()), 60)
            console.print(f"  {s[row]:.3f}  {escape(example.where)}: {escape(text)}")


class Progress(TrainerCallback):
    """A bar with the time left, NLL and KL."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: tqdm | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **options: Any) -> None:  # noqa: ARG002
        """Open it."""
        self._bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            desc="training",
            unit="step",
            mininterval=1.0,
            disable=self._console.quiet,
        )

    def on_log(
        self,
        args: Any,  # noqa: ARG002
        state: Any,
        control: Any,  # noqa: ARG002
        logs: dict[str, float] | None = None,
        **options: Any,  # noqa: ARG002
    ) -> None:
        """Move it on."""
        if self._bar is not None and logs and "nll" in logs:
            self._bar.set_postfix_str(terms(logs), refresh=False)
            self._bar.update(state.global_step - self._bar.n)

    def on_train_end(self, args: Any, state: Any, control: Any, **options: Any) -> None:  # noqa: ARG002
        """Close it."""
        if self._bar is not None:
            self._bar.close()


def terms(logged: Mapping[str, float]) -> str:
    """NLL and, where it was measured, KL, in few words."""
    kl = logged.get("kl", math.nan)
    return f"NLL {logged['nll']:.3f}" + ("" if math.isnan(kl) else f", KL {kl:.3f}")


def quiet(trainer: Trainer) -> None:
    """Without transformers' own printing of every log."""
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)


def _special(example: Example, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether what people wrote holds text that the tokenizer takes for its own marks."""
    texts = [example.answer, *(message["content"] for message in example.prompt)]
    return any(mark in text for text in texts for mark in tokenizer.all_special_tokens)


def _answer_tokens(one: Any) -> int:
    return len(one.labels) - next(i for i, label in enumerate(one.labels) if label >= 0)


def _clip(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 3]}..."
