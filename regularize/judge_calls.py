"""How many calls of a judge does a probe save, and what do they cost in recall?

On labelled training data: the probe alone, the judge alone, and the hybrid critic at a range of
bands, in which the judge decides, or is weighed with the probe by labelled rows that were set
aside. Beside it the control: a judge that reads as many rows, drawn at random. For a miniature
there are a judge by rule, with known error rates, and two weak probes beside the ordinary one.

Run as:
    python -m regularize.judge_calls
    python -m regularize.judge_calls --judges "scripted?recall=.8&false_alarms=.1" --seeds 1
    python -m regularize.judge_calls --model ./my-model --data labelled.jsonl
        --probes runs/layer_sweep/my-model/mine/probe --judges openai/gpt-oss-20b
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from probes.errors import InputError
from regularize.critics.judge import JudgeCritic

DATA = ("miniature:mixed", "miniature:look-alikes")
PROBES = ("probe", "probe-early", "probe-32")
JUDGES = ("scripted?recall=.9&false_alarms=.05", "scripted?recall=.99&false_alarms=.2")


@dataclass(frozen=True)
class JudgeCallsConfig:
    """What to compare. Saved as config.json beside the results."""

    model: str = "miniature/llama"
    """The chat model that the probes read: hub id, folder, .gguf file, or miniature/FAMILY."""
    data: tuple[str, ...] = ()
    """Labelled training rows, each a file, hub:org/name or TESTBED:NAME. Default for a miniature:
    miniature:mixed and miniature:look-alikes."""
    probes: tuple[str, ...] = ()
    """Folders of frozen probes, or names of the testbed's: probe, probe-early, probe-32. Default
    for a miniature: these three."""
    judges: tuple[str, ...] = ()
    """Judges, as in --judge.model. Default for a miniature: two judges by rule."""
    judge: JudgeCritic = field(default_factory=JudgeCritic)
    """How they are asked; the model is that of --judges."""
    los: tuple[float, ...] = (0.3, 0.1, 0.05, 0.02, 0.01, 1e-3, 0.0)
    """Bands to try, by their lower end: each is lo to 1 - lo. 0 has the judge read all rows."""
    n_labelled: int = 100
    """Rows of the data that are set aside, to weigh probe and judge by, and judged in nothing."""
    threshold: float = 0.5
    """Risk above which a row is flagged, by every critic."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """Of the data, if they are generated, of what is set aside, and of the control."""
    out: Path = Path("runs/judge_calls")
    """Folder for the table and the figures."""
    sweeps: Path = Path("runs/layer_sweep")
    """Where the sweep has left the ordinary probe; what is missing of a testbed's is swept."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the weights."""
    device_map: str | None = None
    """Where the weights go, as in transformers. Default: a GPU if any."""

    def check(self) -> None:
        """Raise InputError for what cannot work, before anything is loaded."""
        if not self.is_miniature:
            for name in ("data", "probes", "judges"):
                if not getattr(self, name):
                    raise InputError(f"--{name} names nothing: only miniatures have a default")
        if not self.seeds:
            raise InputError("--seeds: at least one is needed")
        if not self.los or not all(0 <= lo < 0.5 for lo in self.los):
            raise InputError(f"--los {self.los}: each is a probability from 0 to below .5")
        if not 0 <= self.threshold <= 1:
            raise InputError(f"--threshold {self.threshold}: a risk lies between 0 and 1")
        if self.n_labelled < 0:
            raise InputError(f"--n-labelled {self.n_labelled}: 0 for none, or how many")

    @property
    def is_miniature(self) -> bool:
        """Whether the model is a miniature, which brings its own data."""
        return self.model.startswith("miniature/")


def main(config: JudgeCallsConfig) -> None:
    """Ask each probe and each judge once about all rows; combine, tabulate, draw.

    Raises:
        InputError: Something given cannot be used.
    """
    config.check()
    from rich.console import Console

    from analysis import figures, results
    from analysis import judge_calls as shown
    from probes.commands import arguments
    from regularize.call_savings import rows

    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    found = list(rows(config, console))
    results.replace({config.out / "config.json": arguments(config, "torch").encode()})
    results.write(found, config.out / "judge_calls")
    tables = results.read_all(config.out)
    console.print(shown.render(tables["judge_calls"]))
    for path in figures.redraw(tables, config.out / "figures"):
        console.print(str(path), markup=False, soft_wrap=True)


if __name__ == "__main__":
    import tyro

    from probes.commands import run

    sys.exit(
        run(
            main,
            tyro.cli(
                JudgeCallsConfig, prog="python -m regularize.judge_calls", description=__doc__
            ),
        )
    )
