"""HarmBench: harmful behaviours, plain, about a given text, and copyright.

Behaviours about a text come with it: the text, a rule, the behaviour, as HarmBench's own pipeline
joins them. Rows are grouped by their semantic category, for several ask the same of one text.
Label rule: every row is harmful (those about copyright too).
"""

from probes import cells
from probes.files import Row
from probes.prompts._named import NamedSet, Part, Split, text_of

_behaviour = text_of("Behavior", "prompt")


def _prompt(row: Row) -> str:
    context = row.cells.get("ContextString") or row.cells.get("context")
    return f"{context}\n\n---\n\n{_behaviour(row)}" if context else _behaviour(row)


def _group(row: Row) -> str | None:
    field = "SemanticCategory" if "SemanticCategory" in row else "category"
    return cells.group(row, field) if field in row else None


SET = NamedSet(
    hub="walledai/HarmBench",  # behind a form; the authors' files are on GitHub
    licence="MIT",
    citation="Mazeika et al. 2024, arXiv 2402.04249",
    splits={
        "all": Split(
            hub=(Part("standard:train"), Part("contextual:train"), Part("copyright:train")),
            files=(Part("prompts/harmbench_behaviors_text_all.csv"),),
        ),
        "val": Split(files=(Part("prompts/harmbench_val.csv"),)),
    },
    prompt=_prompt,
    label=1,
    group=_group,
    paired_with="alpaca",
)
