"""Time and memory beside what one would use instead; rows to runs/bench, a table to the screen.

Run as:
    python -m tests.benchmarks
"""

from math import isnan
from pathlib import Path

from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from analysis import results
from tests.benchmarks import capture, fit, memory, step
from tests.benchmarks.interleave import Case, measure

ROUNDS = 5
BENCHES = {"capture": capture, "fit": fit, "step": step}


def main() -> None:
    """Measure every case."""
    rows = []
    # A bench at a time, and a case at a time, since each holds its models.
    with tqdm(unit="case") as bar:
        for name, bench in BENCHES.items():
            for number, case in enumerate(bench.cases()):
                rows.append(_row(case, memory.ratio(name, number)))
                bar.update()
    results.write(rows, Path("runs/bench/bench"))
    table = Table(title=f"ours / baseline, 1 thread; time: median [quartiles] of {ROUNDS} rounds")
    for heading in ("bench", "case", "baseline", "time", "memory", "largest difference"):
        table.add_column(heading)
    for row in rows:
        time = f"{row.time_ratio:.2f} [{row.time_ratio_lo:.2f}, {row.time_ratio_hi:.2f}]"
        peak = "" if isnan(row.memory_ratio) else f"{row.memory_ratio:.2f}"
        table.add_row(row.bench, row.case, row.baseline, time, peak, f"{row.parity:.1e}")
    Console(width=132).print(table)


def _row(case: Case, memory_ratio: float) -> results.BenchRow:
    ratio = measure(case, rounds=ROUNDS)
    return results.BenchRow(
        bench=case.bench,
        case=case.case,
        baseline=case.baseline,
        time_ratio=ratio.median,
        time_ratio_lo=ratio.lo,
        time_ratio_hi=ratio.hi,
        memory_ratio=memory_ratio,
        parity=ratio.parity,
    )


if __name__ == "__main__":
    main()
