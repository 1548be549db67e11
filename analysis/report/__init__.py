"""One page on one sweep: what may be believed of it, by which numbers. No model is loaded.

The page stands alone: style and figures are inside, there is no script, and nothing is fetched. It
is written from scores; every other table that lies beside them adds its part, and of one that is
missing the page says what was not computed.

Run as:
    python -m analysis report
    python -m analysis report --results runs/layer_sweep runs/causal_check --out report.html
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class ReportConfig:
    """Which sweep to report on, and where to."""

    results: tuple[Path, ...] = (Path("runs/layer_sweep"),)
    """Folder that a sweep wrote: scores and the other tables, as .parquet or .csv; config.json.
    After it others with tables that the sweep has not, such as causal or drift."""
    out: Path | None = None
    """The page. Default: report.html in the first of these folders."""


def main(config: ReportConfig) -> None:
    """Write the page and say where it lies.

    Raises:
        TableError: there are no scores, or a table is broken.
    """
    from rich.console import Console

    from analysis import results

    if not config.results:
        raise results.TableError("--results names no folder; give that of a sweep")
    out = config.out or config.results[0] / "report.html"
    results.replace({out: page(*config.results).encode()})
    Console().print(f"report: {out}", markup=False, highlight=False, soft_wrap=True)


def page(*folders: Path) -> str:
    """The whole page as HTML. Equal inputs give equal text on one machine.

    Raises:
        TableError: there are no scores, or a table is broken.
    """
    import base64
    import hashlib

    from jinja2 import Environment, PackageLoader, StrictUndefined

    from analysis.report import examples, grids, grids_evidence, marks, verdict
    from analysis.report.cases import cases
    from analysis.report.origin import origin
    from analysis.report.pictures import pictures
    from analysis.report.wording import bound

    tables = _tables(folders)
    origins = [origin(folder) for folder in folders]
    searched = any(one.searched for one in origins)
    probes = cases(tables, origins[0].fpr)
    environment = Environment(
        loader=PackageLoader("analysis", "report"),
        autoescape=True,  # a prompt may hold anything
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["bound"] = bound
    style = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return environment.get_template("page.html.j2").render(
        style=style,
        # Should a text ever slip through unescaped, the browser still runs and fetches nothing.
        policy=f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'",
        models=list(dict.fromkeys(case.model for case in probes)),
        verdicts=[(case, verdict.judge(case, searched=searched)) for case in probes],
        words=marks.WORDS,
        explained=verdict.explained(),
        pictures=pictures(tables),
        sections=(
            grids.auroc(tables),
            grids.margins(probes, tables),
            grids.transfer(probes),
            grids_evidence.operating(tables),
            grids_evidence.layers(tables),
            grids_evidence.controls(tables),
            grids_evidence.calibration(tables),
            grids_evidence.causal(tables),
            grids_evidence.drift(tables),
        ),
        wrong=[examples.wrong(case, tables) for case in probes],
        leaks=examples.leaks(tables, searched=searched),
        origins=origins,
    )


def _tables(folders: Sequence[Path]) -> dict[str, pd.DataFrame]:
    from analysis import results

    tables: dict[str, pd.DataFrame] = {}
    for folder in folders:
        found = results.read_all(folder)
        for name in found:
            if name in tables:
                raise results.TableError(
                    f"{folder}: holds a table {name}, as a folder before it does; leave one out"
                )
        tables |= found
    if "scores" not in tables:
        raise results.TableError(
            f"{folders[0]}: holds no scores.parquet or scores.csv, which a report needs; give the "
            "folder of a sweep with --results"
        )
    return tables
