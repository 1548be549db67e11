"""Is a model still safe, and of use? Attack success, refusals, over-refusal, tasks, with intervals.

The model, with an adapter on it if one is given, answers harmful prompts, harmless look-alikes and
questions of tasks; detectors judge each answer. Every answer is kept for people to read.

Run as:
    python -m regularize.evaluate
    python -m regularize.evaluate --adapter runs/ft --base
    python -m regularize.evaluate --model Qwen/Qwen2.5-3B-Instruct --harmful xstest
        --look-alikes xstest --utility gsm8k --detector phrases classifier:org/name
    python -m regularize.evaluate --model Qwen/Qwen2.5-3B-Instruct --adapter runs/ft --base
        --win-rate alpaca --win-rate-judge "judge:openai/gpt-oss-20b?tokens=4096"
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from probes.errors import InputError

if TYPE_CHECKING:  # What --help does not need is imported late.
    from rich.table import Table

    from regularize.answered import Judgement, Record
    from regularize.asked import Asked

MINIATURE_N = 200


@dataclass(frozen=True)
class EvaluateConfig:
    """What to evaluate, on what. Saved as config.json beside the results."""

    model: str = "miniature/llama"
    """Chat model: hub id, local folder, .gguf file, or miniature/FAMILY."""
    adapter: Path | None = None
    """Folder of a PEFT adapter that was trained on the model, such as runs/ft."""
    base: bool = False
    """Evaluate the model without the adapter too, to compare."""
    harmful: tuple[str, ...] = ()
    """Prompt sets whose harmful rows (label 1) are asked: a named set, a file, hub:org/name.
    Default, for the miniatures only: their own language, with everything else that it has."""
    look_alikes: tuple[str, ...] = ()
    """Prompt sets whose harmless rows (label 0) are asked, to count needless refusals."""
    utility: tuple[str, ...] = ()
    """Tasks that the model should still do: gsm8k[:PATH], exact:FILE (columns prompt and answer),
    miniature."""
    new_task: tuple[str, ...] = ()
    """Tasks that it was to learn, named in the same way."""
    win_rate: str | None = None
    """Requests whose answers a judge compares with the data's own: alpaca, or a file with columns
    prompt and answer."""
    win_rate_judge: str | None = None
    """The chat model that compares, in both orders: judge:MODEL. It cannot be the evaluated one."""
    detector: tuple[str, ...] = ("phrases",)
    """Who judges: phrases, classifier:MODEL[?harmful=LABEL&refusal=LABEL], judge:MODEL. Never the
    critic that weighed the training data."""
    allow_same_judge: bool = False
    """Let a model judge that is the evaluated one without its adapter, or was its critic."""
    allow_other_base: bool = False
    """Load the adapter although it names another base model."""
    n: int | None = None
    """Prompts of each set at most, drawn by the seed. Default: all; of the miniatures' language
    200 of each kind."""
    split: Literal["validation", "test"] = "test"
    """Part of the miniatures' language: validation for choosing, test for reporting."""
    max_new_tokens: int = 512
    """Longest answer (tokens). What is longer is cut, so leave room for a task's working."""
    batch_tokens: int = 16384
    """Tokens in memory at a time, padding included."""
    temperature: float = 0.0
    """0: always the likeliest token. Above: sampling within top_p .9."""
    seed: int = 0
    """Seed of the prompts drawn, and of sampling."""
    revision: str | None = None
    """Hub revision (branch, tag or commit) of the model."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the weights; auto is the checkpoint's own."""
    device_map: str | None = None
    """Where the weights go, as in transformers: auto, cuda:0, cpu. Default: a GPU if any."""
    engine: str = "transformers"
    """What runs the model: transformers, or vllm (an optional extra, for GPUs). Detectors that are
    models are run by transformers."""
    vllm_gpus: int = 1
    """GPUs over which vLLM splits the model."""
    vllm_memory: float = 0.9
    """Share of each GPU's memory that vLLM takes; leave room for judges."""
    stop_early: bool = False
    """Cut an answer where the exact rule that checks it has decided, and mark it as cut in
    answers.jsonl. Right and wrong stay what they are. What a detector reads is never cut."""
    chat_template: str | None = None
    """A Jinja file, or 'plain' (User: ... Assistant:), for base models that have none."""
    out: Path = Path("runs/evaluate")
    """Folder for evaluations.csv and .parquet, answers.jsonl and config.json."""

    def check(self) -> None:
        """Raise InputError for what cannot work, before anything is loaded."""
        if not self.named and not self.on_miniatures:
            raise InputError(
                "nothing to ask: give prompt sets, such as --harmful xstest --look-alikes xstest, "
                "or tasks, such as --utility gsm8k (only the miniatures have a default)"
            )
        if not self.detector:
            raise InputError("--detector names none; phrases needs no model")
        for name, least in (("n", 1), ("max_new_tokens", 1), ("batch_tokens", 1)):
            if (value := getattr(self, name)) is not None and value < least:
                flag = name.replace("_", "-")
                raise InputError(f"--{flag} {value}: must be at least {least}")
        if self.vllm_gpus < 1 or not 0 < self.vllm_memory <= 1:
            raise InputError(
                f"--vllm-gpus {self.vllm_gpus} --vllm-memory {self.vllm_memory}: at least one GPU, "
                "and a share above 0 and up to 1"
            )
        if self.stop_early and self.engine != "transformers":
            raise InputError(f"--stop-early: {self.engine} writes every answer to its end")
        if self.temperature < 0:
            raise InputError(f"--temperature {self.temperature}: cannot be negative")
        if self.base and self.adapter is None:
            raise InputError("--base compares with an adapter: give one with --adapter FOLDER")
        if (self.win_rate is None) != (self.win_rate_judge is None):
            raise InputError(
                "--win-rate names the requests and --win-rate-judge who compares: give both, as in "
                "--win-rate alpaca --win-rate-judge judge:org/model"
            )
        blocker = next((p for p in (self.out, *self.out.parents) if p.exists()), None)
        if blocker is not None and not blocker.is_dir():
            raise InputError(f"{self.out}: cannot be made, for {blocker} is a file, not a folder")

    @property
    def on_miniatures(self) -> bool:
        """Whether it is a miniature, asked in its own language as nothing else is named."""
        return self.model.startswith("miniature/") and not self.named

    @property
    def named(self) -> tuple[str, ...]:
        """Everything that is to be asked."""
        win_rate = () if self.win_rate is None else (self.win_rate,)
        return (*self.harmful, *self.look_alikes, *self.utility, *self.new_task, *win_rate)

    def to_json(self) -> str:
        """The arguments, and the releases of the libraries in use."""
        from probes.commands import arguments

        return arguments(self, "torch", "transformers", "peft", self.engine)


def main(config: EvaluateConfig) -> None:
    """Ask, judge, print the table and write everything down.

    Raises:
        InputError: Something given cannot be used.
    """
    config.check()

    from rich.console import Console

    from regularize import detectors as known
    from regularize import engines, win_rate
    from regularize.answered import ask, judgements
    from regularize.independence import refuse_partial
    from regularize.noise import without_noise

    without_noise()
    kind = engines.named(config.engine)
    asked = _questions(config)
    engine = kind.load(
        engines.Loading(
            config.model,
            revision=config.revision,
            dtype=config.dtype,
            device_map=config.device_map,
            chat_template=config.chat_template,
            gpus=config.vllm_gpus,
            memory=config.vllm_memory,
        )
    )
    detectors = [known.open(spec) for spec in dict.fromkeys(config.detector)]
    referee = None
    if config.win_rate_judge is not None:
        referee = win_rate.opened(config.win_rate_judge, detectors)
    if not config.allow_same_judge:
        refuse_partial(detectors, engine.chat, config.adapter)
        if referee is not None:
            refuse_partial([referee], engine.chat, config.adapter, option="--win-rate-judge")
    if config.adapter is not None:
        engine.adapt(config.adapter, allow_other_base=config.allow_other_base)
    asking = engines.Asking(
        max_new_tokens=config.max_new_tokens,
        batch_tokens=config.batch_tokens,
        temperature=config.temperature,
        seed=config.seed,
        progress=sys.stderr.isatty(),
    )

    def run(*, adapted: bool) -> list[Record]:
        return ask(
            engine, asked, detectors, referee,
            asking=asking, adapted=adapted, stop_early=config.stop_early,
        )  # fmt: skip

    answered: dict[str, list[Record]] = {}
    if config.adapter is None or config.base:
        answered["before"] = run(adapted=False)
    if config.adapter is not None:
        name = config.adapter.resolve().name
        answered["adapter" if name == "before" else name] = run(adapted=True)
    found = {arm: judgements(records, detectors, referee) for arm, records in answered.items()}
    _write(answered, found, config)
    console = Console(width=None if sys.stdout.isatty() else 100, highlight=False)
    for arm, shares in found.items():
        console.print(
            _table(config.model if arm == "before" else f"{config.model} + {arm}", shares)
        )
    console.print(str(config.out / "evaluations.csv"), markup=False, soft_wrap=True)
    console.print(str(config.out / "answers.jsonl"), markup=False, soft_wrap=True)
    if config.harmful and set(config.detector) == {"phrases"}:
        sys.stderr.write(
            "warning: attack success rests on refusal phrases alone, which see no harm; name a "
            "classifier or a judge beside them, as in --detector phrases classifier:MODEL\n"
        )


def _questions(config: EvaluateConfig) -> list[Asked]:
    """Everything that is asked, read and checked before a model is loaded."""
    from regularize import utilities, win_rate
    from regularize.asked import from_miniature, from_set, from_utility, from_win_rate

    n, seed = config.n, config.seed
    if config.on_miniatures:
        return from_miniature(n=n or MINIATURE_N, seed=seed, split=config.split)
    asked: list[Asked] = []
    for spec in dict.fromkeys(config.harmful):
        asked += from_set("harmful", spec, label=1, n=n, seed=seed)
    for spec in dict.fromkeys(config.look_alikes):
        asked += from_set("look-alike", spec, label=0, n=n, seed=seed)
    for spec in dict.fromkeys(config.utility):
        asked += from_utility("utility", utilities.open(spec), n=n, seed=seed)
    for spec in dict.fromkeys(config.new_task):
        asked += from_utility("new-task", utilities.open(spec), n=n, seed=seed)
    if config.win_rate is not None and config.win_rate_judge is not None:
        win_rate.check(config.win_rate_judge)
        asked += from_win_rate(config.win_rate, n=n, seed=seed)
    for specs, kind in ((config.harmful, "harmful"), (config.look_alikes, "look-alike")):
        if len({one.set for one in asked if one.kind == kind}) < len(set(specs)):
            raise InputError(
                f"two of {', '.join(specs)} would have one name in the results; rename one"
            )
    return asked


def _write(
    answered: dict[str, list[Record]],
    found: dict[str, list[Judgement]],
    config: EvaluateConfig,
) -> None:
    """The table, every answer, and the arguments."""
    from analysis import results
    from regularize.measures import Arm, detected_row

    kept = [
        {"arm": arm, **asdict(record)} for arm, records in answered.items() for record in records
    ]
    results.replace({
        config.out / "config.json": config.to_json().encode(),
        config.out / "answers.jsonl": results.jsonl(kept),
    })  # fmt: skip
    rows = [
        detected_row(
            one.share,
            Arm(config.model, defence=arm, seed=config.seed),
            prompts=one.set,
            detector=one.detector,
        )
        for arm, shares in found.items()
        for one in shares
    ]
    results.write(rows, config.out / "evaluations")


def _table(title: str, shares: list[Judgement]) -> Table:
    """One row a share, for a terminal of 100 columns."""
    from rich import box
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE_HEAD, title_style="bold", pad_edge=False)
    for heading in ("metric", "prompts", "judged by"):
        table.add_column(heading, overflow="fold")
    for heading in ("%", "95 % interval", "n"):
        table.add_column(heading, justify="right", no_wrap=True)
    before = None
    for one in shares:
        if before not in (None, (one.set, one.detector)):
            table.add_section()
        before = (one.set, one.detector)
        metric, value, lo, hi, n = one.share
        interval = f"{100 * lo:.1f} to {100 * hi:.1f}"
        table.add_row(metric, one.set, one.detector, f"{100 * value:.1f}", interval, str(n))
    return table


if __name__ == "__main__":
    import tyro

    from probes.commands import run

    sys.exit(
        run(
            main,
            tyro.cli(EvaluateConfig, prog="python -m regularize.evaluate", description=__doc__),
        )
    )
