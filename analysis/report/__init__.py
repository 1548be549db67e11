"""One page on one sweep: what may be believed of it, by which numbers. No model is loaded.

The page stands alone: style and figures are inside, there is no script, and nothing is fetched. It
is written from scores; every other table that lies beside them adds its part, and of one that is
missing the page says what was not computed.

Run as:
    python -m analysis report
    python -m analysis report --results runs/layer_sweep --out report.html
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ReportConfig:
    """Which sweep to report on, and where to."""

    results: Path = Path("runs/layer_sweep")
    """Folder that a sweep wrote: scores and the other tables, as .parquet or .csv; config.json."""
    out: Path | None = None
    """The page. Default: report.html in the folder of the results."""


def main(config: ReportConfig) -> None:
    """Write the page and say where it lies.

    Raises:
        TableError: there are no scores, or a table is broken.
    """
    from rich.console import Console

    from analysis import results

    out = config.out or config.results / "report.html"
    results.replace({out: page(config.results).encode()})
    Console().print(f"report: {out}", markup=False, highlight=False, soft_wrap=True)


def page(folder: Path) -> str:
    """The whole page as HTML. Equal inputs give equal text on one machine.

    Raises:
        TableError: there are no scores, or a table is broken.
    """
    import base64
    import hashlib

    from jinja2 import Environment, PackageLoader, StrictUndefined

    from analysis import results
    from analysis.report import examples, grids, grids_evidence, marks, verdict
    from analysis.report.cases import cases
    from analysis.report.origin import origin
    from analysis.report.pictures import pictures
    from analysis.report.wording import bound

    tables = results.read_all(folder)
    if "scores" not in tables:
        raise results.TableError(
            f"{folder}: holds no scores.parquet or scores.csv, which a report needs; give the "
            "folder of a sweep with --results"
        )
    found = origin(folder)
    probes = cases(tables, found.fpr)
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
        verdicts=[(case, verdict.judge(case, searched=found.searched)) for case in probes],
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
        leaks=examples.leaks(tables, searched=found.searched),
        origin=found,
    )
