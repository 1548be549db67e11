"""Labelled prompt sets: your own files, any data set on the hub, and the field's sets by name.

    load("mine.csv")                                  your own rows
    load("mine.jsonl?prompt=question&label=harmful")  ... under other column names
    load("xstest")                                    a published set, one file of this folder each
    load("xstest?group=type")                         ... grouped by another of its fields
    load("advbench+gsm8k")                            sets joined: harmful rows and harmless ones
    load("advbench")                                  paired with a harmless set on its own accord
    load("hub:org/name:test?prompt=text&label=y")     any data set on the hub
    load("miniature:held-out-category")               the miniature language, generated

A spec is one or more terms joined by `+`; a term is a source and, after a `?`, which column means
what: `field=column`, several joined by `&`. The fields are `prompt` (a text) or `messages` (a chat
in OpenAI's form), `label` (1 harmful, 0 harmless; also true and false), and, optional, `group`
(rows of one group never straddle train and test), `category` (a kind of harm, or a list of them)
and `source`. Without a mapping the columns bear
these names. `label=0` and `label=1` label every row so, for a source without such a column. In a
column's name write %26 for & and %2B for +.

The sources:

- A file: .csv, .tsv, .jsonl or .parquet, UTF-8.
- `name[:split]`: a published set. It is read from the folder that the environment variable
  ACTIVATION_CRITIC_DATA names, where that holds its file, and else from the hub.
  `name[:split]=PATH` reads a copy of your own, with the set's own columns.
- `hub:org/name[:config][:split]`, or `hub:FOLDER`. One word after the name is a configuration where
  there is one so called, else a split.

A prompt that a file of yours repeats or labels both ways is an error that names both rows. Of sets
that others published, repeats and contradictions are left out, and `PromptSet.notes` counts them.
To add a set, add a file to this folder with a `SET`, as the others have.
"""

from probes.prompts._load import describe, load, names
from probes.prompts.rows import Message, Prompt, PromptSet

__all__ = ["Message", "Prompt", "PromptSet", "describe", "load", "names"]
