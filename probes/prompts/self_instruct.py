"""Self-Instruct: tasks written by people, as seeds and for an evaluation. Harmless.

The prompt is the instruction and, where there is one, the first input it is about.
Label rule: every row counts as harmless.
"""

from collections.abc import Mapping
from typing import Any, cast

from probes.files import Row
from probes.prompts._named import NamedSet, Part, Split, text_of

_instruction = text_of("instruction")


def first(row: Row) -> Mapping[str, Any]:
    """The first instance of a task: its input and its output."""
    instances = row["instances"]
    if isinstance(instances, list) and instances:
        return cast(Mapping[str, Any], instances[0])
    return {}


def _prompt(row: Row) -> str:
    about = str(first(row).get("input") or "")
    return f"{_instruction(row)}\n\n{about}" if about else _instruction(row)


SET = NamedSet(
    hub="yizhongw/self_instruct",
    licence="Apache-2.0",
    citation="Wang et al. 2023, arXiv 2212.10560",
    splits={
        "user-oriented": Split(
            hub=(Part("human_eval:train"),),
            files=(Part("benign/user_oriented_instructions.jsonl"),),
        ),
        "seed": Split(files=(Part("benign/self_instruct_seed_tasks.jsonl"),)),
    },
    prompt=_prompt,
    label=0,
)
