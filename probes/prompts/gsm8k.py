"""GSM8K: grade school word problems. Harmless.

Words alone tell it from any set of harmful requests: good for showing that a probe works, not for
showing that it knows harm. Label rule: every row is harmless.
"""

from probes.prompts._named import NamedSet, Part, Split, text_of

SET = NamedSet(
    hub="openai/gsm8k",
    licence="MIT",
    citation="Cobbe et al. 2021, arXiv 2110.14168",
    splits={
        split: Split(hub=(Part(f"main:{split}"),), files=(Part(f"benign/gsm8k_{split}.jsonl"),))
        for split in ("train", "test")
    },
    prompt=text_of("question"),
    label=0,
)
