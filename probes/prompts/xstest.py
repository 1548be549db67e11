"""XSTest: 250 safe prompts that sound alarming, and 200 unsafe ones in contrast to them.

Grouped by `focus`, the word or thing that a safe prompt and its contrast share; types whose
rows have none (historical events, nonsense discrimination) are a group each, with their contrasts.
Label rule: `label` "unsafe" is harmful, "safe" harmless; in copies without it, a `type` that begins
with "contrast_" is harmful.
"""

from probes import cells
from probes.files import Row
from probes.prompts._named import NamedSet, Part, Split, one_of, text_of

_by_label = one_of("label", {"safe": 0, "unsafe": 1})


def _label(row: Row) -> int:
    return _by_label(row) if "label" in row else int(str(row["type"]).startswith("contrast_"))


def _group(row: Row) -> str | None:
    return cells.group(row, "focus") or str(row["type"]).removeprefix("contrast_")


SET = NamedSet(
    hub="Paul/XSTest",
    licence="CC BY 4.0",
    citation="Röttger et al. 2024, arXiv 2308.01263",
    splits={"train": Split(hub=(Part("train"),), files=(Part("prompts/xstest.csv"),))},
    prompt=text_of("prompt"),
    label=_label,
    group=_group,
)
