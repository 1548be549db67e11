"""The attack `mixed` by one who knows the probe: its harmful rows rewritten, and asked alike."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from statistics import fmean
from typing import TYPE_CHECKING

from analysis import results
from analysis.attacker_rows import AttackerRow
from probes.manifest import json_hash
from regularize import attackers, data
from regularize.adaptive import MADE
from regularize.attackers import AS_IT_WAS, Attacker, Form, Said, Task
from regularize.data import Example
from regularize.measures import Share
from regularize.testbeds import Seen, Split
from regularize.testbeds.miniature import training

if TYPE_CHECKING:
    from probes.miniature.language import Row
    from probes.models import ChatModel
    from probes.prompts import Message
    from regularize import measures
    from regularize.arms import Run
    from regularize.critics import Critic
    from regularize.testbeds.miniature.evaluation import Disguised, Evaluation

ROWS = "rows.jsonl"
LOOK = "rewritten.jsonl"
"""For people: each harmful row before and after, with the probe's log-odds."""
OF = "mixed"
UNKNOWN = Share("", math.nan, math.nan, math.nan, 0)


@dataclass(frozen=True)
class Adaptive:
    """What an attacker made for one model and seed (`regularize.testbeds.Made`)."""

    attacker: Attacker
    plain: list[Example]
    """The rows as they were."""
    examples: list[Example]
    """The same, of which the harmful ones are in the attacker's forms."""
    forms: tuple[Form, ...]
    """Of the harmful ones."""
    harm_kept: float
    queries: float
    """For a harmful row."""

    def seen(self, critic: Critic | None, chat: ChatModel) -> Seen:
        """Of the harmful rows; all rows are shown to the critic, as in training."""
        if critic is None:
            return Seen(*[math.nan] * 4)
        harmful = [i for i, one in enumerate(self.plain) if one.label]
        before, after = critic.assess(self.plain, chat), critic.assess(self.examples, chat)
        flagged = [
            math.nan if risks.flagged is None else float(risks.flagged[harmful].mean())
            for risks in (before, after)
        ]
        return Seen(float(before.s[harmful].mean()), float(after.s[harmful].mean()), *flagged)

    def evaluate(self, chat: ChatModel, *, n: int, seed: int, split: Split) -> Evaluation:
        """The usual prompts, and the harmful ones in forms that the attacker found for others."""
        from regularize.testbeds.miniature.evaluation import evaluate_miniature

        disguised = self.disguised(n=n, seed=seed, split=split)
        return evaluate_miniature(chat, disguised=disguised, n=n, seed=seed, split=split)

    def disguised(self, *, n: int, seed: int, split: Split) -> list[Disguised]:
        """Harmful prompts of a split in forms drawn among those that were found, without search.

        A prompt that none of them fits is left out. In its form too it is none that was trained
        on, and a text of the language stays in its part.
        """
        from regularize.testbeds.miniature.evaluation import Disguised, draw
        from regularize.testbeds.miniature.parts import part

        trained = {_turns(one.prompt) for one in self.examples}
        rng = Random(f"{self.attacker.name}/{seed}")
        forms = [form for form in self.forms if form]
        found = []
        for row in draw("harmful", n, seed=seed, split=split) if forms else ():
            for form in rng.sample(forms, len(forms)):
                said = self.attacker.said(row, form)
                if said is None or _turns(said.prompt) in trained:
                    continue
                if self.attacker.of_language and part(said.prompt[0]["content"]) != split:
                    continue
                found.append(Disguised(row, said.prompt, _decipherer(self.attacker, form)))
                break
        return found

    def row(self, about: measures.Arm, seen: Seen, shares: Sequence[Share]) -> AttackerRow:
        """Of one training run on it, or of none."""
        from regularize.testbeds.miniature.evaluation import OWN_FORM

        found = {share.metric: share for share in shares}
        plain, own, task, refused = (
            found.get(name, UNKNOWN)
            for name in ("attack_success", f"attack_success_{OWN_FORM}", "new_task", "over_refusal")
        )
        return AttackerRow(
            model=about.model,
            attacker=self.attacker.name,
            defence=about.defence,
            critic=about.critic,
            seed=about.seed,
            rows=len(self.forms),
            queries=self.queries,
            harm_kept=self.harm_kept,
            **seen._asdict(),
            attack_success=plain.value,
            attack_success_lo=plain.lo,
            attack_success_hi=plain.hi,
            attack_success_own_form=own.value,
            attack_success_own_form_lo=own.lo,
            attack_success_own_form_hi=own.hi,
            new_task=task.value,
            over_refusal=refused.value,
        )


def made(run: Run, folder: Path, probe: Path, attacker: Attacker) -> Adaptive:
    """What lies in a folder, or, where that was made from something else, made anew."""
    known, rows = folder / MADE, training.mixed(_source(run), seed=run.seed)
    config = probe / "config.json"
    made_from = {
        "attacker": repr(attacker),
        "rows": json_hash([[row.text, row.answer] for row in rows]),
        "probe": json.loads(config.read_text()) if config.is_file() else None,
    }
    found = json.loads(known.read_text()) if known.is_file() else {}
    if {name: found.get(name) for name in made_from} != made_from:
        _make(run, folder, probe, attacker, rows, made_from)
        found = json.loads(known.read_text())
    return Adaptive(
        attacker,
        training.training(_source(run), seed=run.seed),
        data.load(str(folder / ROWS)),
        tuple(tuple(form) for form in found["forms"]),
        found["harm_kept"],
        found["queries"],
    )


def _make(
    run: Run,
    folder: Path,
    probe: Path,
    attacker: Attacker,
    rows: list[Row],
    made_from: dict[str, object],
) -> None:
    from probes import models
    from probes.frozen import FrozenProbe
    from regularize.attackers._oracle import Oracle

    chat = models.load(run.model, device_map="cpu")
    oracle = Oracle(chat, FrozenProbe.from_pretrained(probe))
    harmful = [row for row in rows if row.restricted]
    rng = Random(f"{attacker.name}/{run.seed}")
    forms = attacker.search(Task(harmful, oracle, rng, training.fits))
    queries = oracle.queries
    of_row = dict(zip((row.text for row in harmful), forms, strict=True))
    said = [_said(attacker, row, of_row.get(row.text, AS_IT_WAS)) for row in rows]
    lines = [
        {"prompt": list(one.prompt), "completion": one.answer, "label": int(row.restricted)}
        for row, one in zip(rows, said, strict=True)
    ]
    pairs = [(row, one) for row, one in zip(rows, said, strict=True) if row.restricted]
    before = oracle([attackers.as_it_was(row).prompt for row, _ in pairs])
    after = oracle([one.prompt for _, one in pairs])
    look = [
        {"before": row.text, "after": [turn["content"] for turn in one.prompt],
         "answer": one.answer, "log_odds_before": was, "log_odds_after": now}
        for (row, one), was, now in zip(pairs, before, after, strict=True)
    ]  # fmt: skip
    made = {
        **made_from,
        "queries": queries / len(harmful),
        "harm_kept": fmean(
            attackers.harm_kept(attacker, row, form)
            for row, form in zip(harmful, forms, strict=True)
        ),
        "forms": forms,
    }
    results.replace({folder / ROWS: results.jsonl(lines), folder / LOOK: results.jsonl(look)})
    results.replace({folder / MADE: json.dumps(made, indent=1).encode()})


def _source(run: Run) -> str:
    return replace(run, attack=OF).data


def _said(attacker: Attacker, row: Row, form: Form) -> Said:
    said = attacker.said(row, form)
    assert said is not None, f"{attacker.name} cannot say {row.text!r} as {form}"
    return said


def _turns(prompt: Sequence[Message]) -> tuple[tuple[str, str], ...]:
    return tuple((turn["role"], turn["content"]) for turn in prompt)


def _decipherer(attacker: Attacker, form: Form) -> Callable[[str], str]:
    return lambda answer: attacker.deciphered(answer, form)
