"""Dolly: 15 thousand instructions, written by the staff of Databricks. Harmless.

The prompt is the instruction and, where there is one, its context.
Label rule: every row counts as harmless.
"""

from probes.prompts._named import NamedSet, Part, Split, joined

SET = NamedSet(
    hub="databricks/databricks-dolly-15k",
    licence="CC BY-SA 3.0",
    citation="Conover et al. 2023, databricks-dolly-15k",
    splits={
        "train": Split(hub=(Part("train"),), files=(Part("benign/databricks-dolly-15k.jsonl"),)),
        "sample": Split(files=(Part("benign/dolly_1000.csv"),)),
    },
    prompt=joined("instruction", "context"),
    label=0,
)
