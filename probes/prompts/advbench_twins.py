"""AdvBench against its harmless twins: each row and its least edit into a harmless request.

Row i of one file is the twin of row i of the other; the two are one group.
Label rule: by file.
"""

from probes.files import Row
from probes.prompts._named import NamedSet, Part, Split, text_of


def _group(row: Row) -> str:
    return f"twins-{row.index}"


SET = NamedSet(
    hub="",  # in the authors' repository only: WangCheng0116/Why-Probe-Fails on GitHub
    licence="MIT",
    citation="Zou et al. 2023, arXiv 2307.15043; twins: Why-Probe-Fails, 2025, arXiv 2509.03888",
    splits={
        "train": Split(
            files=(
                Part("prompts/advbench_rows_of_cleaned.csv", label=1),
                Part("prompts/advbench_cleaned.csv", label=0),
            )
        )
    },
    prompt=text_of("prompt"),
    group=_group,
)
