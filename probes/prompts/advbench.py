"""AdvBench: 520 harmful instructions.

Many of them say the same in other words, so that folds drawn by row flatter a probe; and TF-IDF
alone tells them from ordinary instructions: see `advbench-twins` for a harder contrast.
Label rule: every row is harmful.
"""

from probes.prompts._named import NamedSet, Part, Split, text_of

SET = NamedSet(
    hub="walledai/AdvBench",  # behind a form; the authors' own file is harmful_behaviors.csv
    licence="MIT",
    citation="Zou et al. 2023, arXiv 2307.15043",
    splits={"train": Split(hub=(Part("train"),), files=(Part("prompts/advbench.csv"),))},
    prompt=text_of("goal", "prompt"),
    label=1,
    paired_with="alpaca",
)
