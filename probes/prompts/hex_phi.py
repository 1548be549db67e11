"""HEx-PHI: harmful instructions by category of a usage policy, 30 each.

Its files have no header: one instruction a row. Label rule: every row is harmful.
"""

from probes.prompts._named import NamedSet, Part, Split, text_of

# There is no category 2.
_FILES = tuple(Part(f"prompts/hex-phi/category_{i}.csv") for i in (1, *range(3, 12)))

SET = NamedSet(
    hub="LLM-Tuning-Safety/HEx-PHI",  # behind a form
    licence="its own terms, to be accepted on the hub",
    citation="Qi et al. 2024, arXiv 2310.03693",
    splits={"all": Split(hub=(Part(""),), files=_FILES)},
    prompt=text_of("prompt"),
    label=1,
    paired_with="alpaca",
    columns=("prompt",),
    options={"names": ["prompt"], "header": None, "keep_default_na": False},
)
