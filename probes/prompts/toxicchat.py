"""ToxicChat (0124): 10 thousand real requests to a demo, 7 % of them toxic.

Label rule: `toxicity` 1, the annotators' word on the request.
"""

from probes import cells
from probes.files import Row
from probes.prompts._named import NamedSet, Part, Split, text_of


def _label(row: Row) -> int:
    return cells.label(row["toxicity"], row.at("toxicity"))


SET = NamedSet(
    hub="lmsys/toxic-chat",
    licence="CC BY-NC 4.0",
    citation="Lin et al. 2023, arXiv 2310.17389",
    splits={
        split: Split(
            hub=(Part(f"toxicchat0124:{split}"),),
            files=(Part(f"prompts/toxicchat/toxic-chat_annotation_{split}.csv"),),
        )
        for split in ("train", "test")
    },
    prompt=text_of("user_input"),
    label=_label,
)
