"""Time ratios beside what one would use instead; rows to runs/bench, the table to the screen.

Run as:
    python -m tests.benchmarks
"""

from pathlib import Path

from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from analysis import results
from tests.benchmarks import capture, fit
from tests.benchmarks.interleave import measure

ROUNDS = 5


def main() -> None:
    """Measure every case."""
    rows = []
    cases = [case for bench in (capture, fit) for case in bench.cases()]
    for case in tqdm(cases, unit="case"):
        ratio = measure(case, rounds=ROUNDS)
        rows.append(
            results.BenchRow(
                bench=case.bench,
                case=case.case,
                baseline=case.baseline,
                time_ratio=ratio.median,
                time_ratio_lo=ratio.lo,
                time_ratio_hi=ratio.hi,
                memory_ratio=float("nan"),
                parity=ratio.parity,
            )
        )
    results.write(rows, Path("runs/bench/bench"))
    table = Table(title=f"time of ours / baseline: median [quartiles] of {ROUNDS} rounds, 1 thread")
    for heading in ("bench", "case", "baseline", "time ratio", "largest difference"):
        table.add_column(heading)
    for row in rows:
        ratio = f"{row.time_ratio:.2f} [{row.time_ratio_lo:.2f}, {row.time_ratio_hi:.2f}]"
        table.add_row(row.bench, row.case, row.baseline, ratio, f"{row.parity:.1e}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
