"""Cells as a table: for GitHub, for a paper, for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill

from rich import box
from rich.table import Table

LATEX = str.maketrans({
    **{char: f"\\{char}" for char in "&%$#_{}"},
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}",
    "–": "--",
})  # fmt: skip
NARROW = 9
"""Characters of a heading's line on a terminal."""


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """GitHub's Markdown: the first column to the left, the others to the right."""
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in [head, rule, *rows])


def latex(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    r"""A floating table with its caption; needs \usepackage{booktabs}."""
    lines = [" & ".join(_escaped(cell) for cell in cells) + r" \\" for cells in [head, *rows]]
    return "\n".join([
        r"\begin{table}", r"\centering", rf"\caption{{{_escaped(caption)}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}", r"\toprule", lines[0], r"\midrule",
        *lines[1:], r"\bottomrule", r"\end{tabular}", r"\end{table}", "",
    ])  # fmt: skip


def terminal(head: Sequence[str], rows: Sequence[Sequence[str]], title: str) -> Table:
    """For rich; headings are broken at blanks."""
    table = Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0), pad_edge=False,
    )  # fmt: skip
    table.add_column(head[0], overflow="fold")
    for heading in head[1:]:
        table.add_column(fill(heading, NARROW), justify="right", no_wrap=True)
    for cells in rows:
        table.add_row(*cells)
    return table


def _escaped(cell: str) -> str:
    # A cell that begins with a bracket would be an option of the line break before it.
    text = cell.translate(LATEX)
    return f"{{}}{text}" if text.startswith("[") else text
