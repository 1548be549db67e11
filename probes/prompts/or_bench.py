"""OR-Bench: safe prompts that models refuse (hard-1k), and toxic ones.

Label rule: by table; the hard thousand is harmless.
"""

from probes.prompts._named import NamedSet, Part, Split, text_of

SET = NamedSet(
    hub="bench-llm/or-bench",
    licence="CC BY 4.0",
    citation="Cui et al. 2024, arXiv 2405.20947",
    splits={
        "all": Split(
            hub=(
                Part("or-bench-hard-1k:train", label=0),
                Part("or-bench-toxic:train", label=1),
            ),
            files=(
                Part("prompts/or-bench/or-bench-hard-1k.csv", label=0),
                Part("prompts/or-bench/or-bench-toxic.csv", label=1),
            ),
        )
    },
    prompt=text_of("prompt"),
)
