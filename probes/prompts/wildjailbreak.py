"""WildJailbreak: harmful and benign requests, plain (vanilla) and in jailbreak wrappings.

The first split, eval, is all wrapped; train has 262 thousand rows of both kinds, grouped by the
plain request that a wrapped one was made from. Label rule: `data_type` ends in "_harmful".
"""

from probes import cells
from probes.files import Row
from probes.prompts._named import NamedSet, Part, Split, one_of, text_of

_wrapped, _plain = text_of("adversarial"), text_of("vanilla")


def _prompt(row: Row) -> str:
    return _wrapped(row) if str(row["data_type"]).startswith("adversarial") else _plain(row)


def _group(row: Row) -> str | None:
    return cells.group(row, "vanilla") if "vanilla" in row else None


SET = NamedSet(
    hub="allenai/wildjailbreak",  # behind a form
    licence="ODC-BY, with AI2's Responsible Use Guidelines",
    citation="Jiang et al. 2024, arXiv 2406.18510",
    splits={
        "eval": Split(hub=(Part("eval:train"),), files=(Part("prompts/wildjailbreak/eval.tsv"),)),
        "train": Split(
            hub=(Part("train:train"),), files=(Part("prompts/wildjailbreak/train.tsv"),)
        ),
    },
    prompt=_prompt,
    label=one_of(
        "data_type",
        {
            "adversarial_benign": 0,
            "vanilla_benign": 0,
            "adversarial_harmful": 1,
            "vanilla_harmful": 1,
        },
    ),
    group=_group,
    options={"delimiter": "\t", "keep_default_na": False},
)
