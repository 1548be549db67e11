"""JailbreakBench: 100 harmful behaviours and 100 benign ones on the same subjects.

Some of its harmful rows are AdvBench's and HarmBench's: held out from a probe trained on those, it
is not wholly unseen. Grouped by category, which the two halves share. Label rule: by half.
"""

from probes import cells
from probes.files import Row
from probes.prompts._named import NamedSet, Part, Split, text_of


def _group(row: Row) -> str | None:
    return cells.group(row, "Category")


SET = NamedSet(
    hub="JailbreakBench/JBB-Behaviors",
    licence="MIT",
    citation="Chao et al. 2024, arXiv 2404.01318",
    splits={
        "all": Split(
            hub=(Part("behaviors:harmful", label=1), Part("behaviors:benign", label=0)),
            files=(
                Part("prompts/jailbreakbench/harmful-behaviors.csv", label=1),
                Part("prompts/jailbreakbench/benign-behaviors.csv", label=0),
            ),
        )
    },
    prompt=text_of("Goal"),
    group=_group,
)
