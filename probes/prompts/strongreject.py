"""StrongREJECT: 313 forbidden prompts.

Some of its rows are AdvBench's. Label rule: every row is harmful.
"""

from probes.prompts._named import NamedSet, Part, Split, text_of

SET = NamedSet(
    hub="walledai/StrongREJECT",  # behind a form; the authors' file is strongreject_dataset.csv
    licence="MIT",
    citation="Souly et al. 2024, arXiv 2402.10260",
    splits={
        "train": Split(hub=(Part("train"),), files=(Part("prompts/strongreject_dataset.csv"),))
    },
    prompt=text_of("forbidden_prompt", "prompt"),
    label=1,
    paired_with="alpaca",
)
