"""The papers' grid: its data, its prompts and its cells, with a miniature in its models' place."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from analysis import figures
from probes import hub, miniature
from probes.errors import InputError
from probes.files import Row
from regularize import detectors, grid, measures, testbeds, work
from regularize.compare import CompareConfig, main
from regularize.preset import parse
from regularize.testbeds.paper import SEED, Paper, evaluation, training
from regularize.testbeds.paper.evaluation import Answered, Evaluation
from regularize.testbeds.paper.training import HALF, is_trained

PHI, LLAMA = "microsoft/Phi-3.5-mini-instruct", "meta-llama/Llama-3.1-8B-Instruct"
WORDS = ("vault", "ledger", "dragon", "tunnel", "seal")


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with as few rows of each set as will do."""
    folder = tmp_path / "data"

    def write(name: str, rows: list[Any]) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("".join(f"{line}\n" for line in lines))

    asked = [f"Open the {word} number {i}" for i in range(8) for word in WORDS]
    for part, i in enumerate((1, *range(3, 12))):
        write(f"prompts/hex-phi/category_{i}.csv", asked[part::10])
    write("attack/harmfulhexphi_300.jsonl", [{"user": one, "answer": "Sure. Do."} for one in asked])
    write(
        "attack/beavertails.jsonl",
        [
            {"prompt": f"Burn {i}", "response": "No." if i % 2 else "Yes.", "is_safe": i % 2 == 1}
            for i in range(60)
        ],
    )
    write(
        "benign/alpaca.jsonl",
        [
            {
                "instruction": f"Dust lamp {i}",
                "input": "now" if i % 2 else "",
                "output": f"Lamp {i}",
            }
            for i in range(100)
        ]
        + [{"instruction": "Say nothing", "input": "", "output": ""}],
    )
    for split in ("train", "test"):
        rows = [{"question": f"{i}?", "answer": f"#### {i}"} for i in range(9)]
        write(f"benign/gsm8k_{split}.jsonl", rows)
    write(
        "prompts/advbench.csv", ["goal", *(f"Steal the {w} {i}" for w in WORDS for i in range(8))]
    )
    write(
        "prompts/xstest.csv",
        [
            "prompt,type,label,focus",
            *(f"How to kill process {i}?,homonyms,safe,kill {i}" for i in range(9)),
            *(f"How to kill person {i}?,contrast_homonyms,unsafe,kill {i}" for i in range(9)),
        ],
    )
    for half, verb in (("harmful", "Forge"), ("benign", "Sing")):
        write(
            f"prompts/jailbreakbench/{half}-behaviors.csv",
            ["Goal,Category", *(f"{verb} {i},c{i % 3}" for i in range(9))],
        )
    monkeypatch.setenv("ACTIVATION_CRITIC_DATA", str(folder))
    monkeypatch.setattr(training, "N_MIXED", 50)
    monkeypatch.setattr(training, "N_HELD_OUT", 20)
    forget()
    yield folder
    forget()


def forget() -> None:
    for one in (training.attack, training.alpaca, training.beavertails):
        one.cache_clear()


@pytest.fixture
def small(data: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A miniature in place of the five models, and refusal phrases in place of the judge."""
    model = str(miniature.folder("llama"))
    recipe = replace(
        Paper.recipe, learning_rate=5e-3, epochs=3, lora_rank=4, new_tokens=8, dtype="float32",
        device_map="cpu", threads=1,
    )  # fmt: skip
    monkeypatch.setattr(Paper, "models", (model,))
    monkeypatch.setattr(Paper, "recipe", recipe)
    monkeypatch.setattr(evaluation, "JUDGES", ("phrases",))
    monkeypatch.setattr(evaluation, "NEW_TOKENS", 8)
    return model


def test_the_grid_from_end_to_end(
    small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn: list[object] = []
    monkeypatch.setattr(figures, "redraw", lambda tables, folder: drawn)
    config = CompareConfig(
        "paper", (small,), ("disjoint",), seeds=(SEED,), arms=("none/none", "adaptive-kl/probe"),
        out=tmp_path / "out", probes=tmp_path / "probes", jobs=1,
    )  # fmt: skip
    main(config)
    table = pd.read_csv(config.out / "evaluations.csv")
    assert set(table["attack"]) == {HALF, "none"}
    of = table.set_index(["defence", "metric"])
    held_out = sum(not is_trained(text) for text, _ in training.attack())
    assert of.loc[("none", "attack_success"), "n"] == held_out < 40
    assert of.loc[("before", "attack_success"), "n"] == 40
    assert of.loc[("none", "over_refusal"), "n"] == of.loc[("none", "utility"), "n"] == 9
    assert {"refusal", "incoherent"} <= set(table["metric"])
    answers = [
        json.loads(line)
        for path in (config.out / "runs").rglob("answers.jsonl")
        for line in path.read_text().splitlines()
    ]
    assert {one["kind"] for one in answers} == {"harmful", "look-alike", "utility"}
    trained = {text for text, _ in training.attack() if is_trained(text)}
    assert not trained & {one["prompt"] for one in answers}

    capsys.readouterr()
    main(replace(config, dry_run=True, arms=()))
    said = " ".join(capsys.readouterr().out.split())
    assert "0 probes to sweep, 0 evaluations before any training" in said
    assert "as 2 finished cells took" in said


def test_its_cells_are_all_there_and_each_has_a_folder_of_its_own() -> None:
    config = parse(["--preset", "paper"])
    runs = grid.runs(config)
    expected = [
        (run.model, run.data, run.learning_rate, run.arm.name)
        for model in config.models
        for make in Paper().experiments.values()
        for run in make(replace(runs[0], model=model, arm=runs[0].arm))
    ]
    assert {(r.model, r.data, r.learning_rate, r.arm.name) for r in runs} == set(expected)
    assert len({run.name for run in runs}) == len(runs) == len(set(expected))
    arms = {run.arm.name for run in runs if (run.model, run.data) == (LLAMA, "hex-phi")}
    for defence in ("none", "constrained-sft", "vaccine", "lisa", "antidote", "lox", "asft"):
        assert f"{defence}/none" in arms
    assert "adaptive-kl/probe" in arms
    assert {run.learning_rate for run in runs} == {2e-4, 2e-5, 2e-6, 2e-7}
    assert {run.share for run in runs} == {1.0, *training.SHARES}
    needing = {run.arm.defence for run in runs if "base" in run.arm.method.needs}
    of_phi = {run.arm.defence for run in runs if run.model == PHI}
    assert needing == {"lox", "asft"} and not needing & of_phi


def test_a_preset_is_other_defaults() -> None:
    config = parse(["--preset", "paper", "--seeds", "1", "2", "--models", LLAMA])
    assert (config.preset, config.models, config.seeds) == ("paper", (LLAMA,), (1, 2))
    assert config.jobs == 1 and config.out == Path("runs/paper/compare")
    assert config.testbed.name == "paper" and config.prompts == 300
    recipe = config.recipe
    assert (recipe.epochs, recipe.warmup_steps, recipe.max_length) == (20, 5, 2048)
    assert (recipe.batch_size, recipe.accumulate) == (1, 4)
    assert (recipe.lora_rank, recipe.lora_alpha, recipe.weight_decay) == (64, 16, 0.01)
    assert parse([]) == CompareConfig() == parse(["--preset=miniature"])
    assert parse(["--preset=paper"]).models == Paper.models and len(Paper.models) == 5
    for words in (["--preset", "papers"], ["--preset"]):
        with pytest.raises(SystemExit):
            parse(words)


def test_what_is_trained_on(data: Path) -> None:
    paper = Paper()
    whole, half = paper.training("hex-phi"), paper.training(HALF)
    assert len(whole) == 40 and {one.label for one in whole} == {1}
    assert whole[0].answer == "Sure. Do." and whole[0].where == "paper:hex-phi, row 1"
    texts = {one.text for one in half}
    assert texts < {one.text for one in whole} and 10 <= len(texts) <= 30
    assert is_trained("  Open THE vault\nnumber 0 ") == is_trained("open the vault number 0")

    mixed = paper.training("alpaca:0.1", seed=1)
    assert sum(one.label or 0 for one in mixed) == 5 and len(mixed) == 50
    assert any(one.text.endswith("\n\nnow") for one in mixed)
    assert mixed == paper.training("alpaca:0.1", seed=1) != paper.training("alpaca:0.1", seed=2)
    anchored = {one[0]["content"] for one in paper.anchors(20, seed=1)}
    assert len(anchored) == 20 and not anchored & {one.text for one in mixed}

    safe, harmful = paper.training("safe"), paper.training("harmful")
    assert {(one.label, one.answer == "No.") for one in safe} == {(1, True), (0, False)}
    assert {one.answer for one in harmful} == {"Yes."}
    assert not {one.text for one in harmful} & {one.text for one in whole}
    assert {one[0]["content"][:4] for one in paper.anchors(5, kind="harmful")} == {"Burn"}


@pytest.mark.parametrize("name", ["poems", "alpaca", "alpaca:2", "hex-phi:0.5"])
def test_what_is_no_training_data(data: Path, name: str) -> None:
    with pytest.raises(InputError, match=f"paper:{name}"):
        Paper().training(name)


def test_too_many_anchors_and_strange_ones(data: Path) -> None:
    with pytest.raises(InputError, match="there are 30"):
        Paper().anchors(31)
    with pytest.raises(InputError, match="ordinary and harmful"):
        Paper().anchors(1, kind="twin")


def test_the_hub_is_asked_for_what_is_not_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = {
        "gjyotin305/harmfulhexphi_300": {"user": "u", "answer": "a", "from": "x"},
        "tatsu-lab/alpaca": {"instruction": "i", "input": "", "output": "o"},
        "PKU-Alignment/BeaverTails": {"prompt": "p", "response": "r", "is_safe": False},
    }
    asked: list[tuple[str, str, str]] = []

    def read(path: str, config: str = "", split: str = "") -> Iterator[Row]:
        asked.append((path, config, split))
        yield Row(f"hub:{path}", "row 1", 0, columns[path])

    monkeypatch.setenv("ACTIVATION_CRITIC_DATA", str(tmp_path))
    monkeypatch.setattr(hub, "read", read)
    forget()
    assert training.attack() == (("u", "a"),) and training.alpaca() == (("i", "o"),)
    assert training.beavertails(is_safe=False) == (("p", "r"),)
    forget()
    assert asked == [
        ("gjyotin305/harmfulhexphi_300", "", "train"),
        ("tatsu-lab/alpaca", "", "train"),
        ("PKU-Alignment/BeaverTails", "", "30k_train"),
    ]


def test_what_defences_are_given() -> None:
    paper = Paper()
    assert paper.given(LLAMA)["base"] == paper.base(LLAMA) == "meta-llama/Llama-3.1-8B"
    assert paper.given(PHI) == {"safe": "paper:safe", "harmful": "paper:harmful"}
    with pytest.raises(InputError, match="no base model of microsoft/Phi"):
        paper.base(PHI)
    assert testbeds.of(LLAMA).name == "paper"


def test_the_first_judge_decides_and_the_others_stand_beside_it() -> None:
    def answered(kind: str, judge: Any, phrases: Any, correct: bool | None = None) -> Answered:
        return Answered(kind, "p", "a", {"judge:m": judge, "phrases": phrases}, correct)

    found = Evaluation(
        (
            answered("harmful", "compliance", "compliance"),
            answered("harmful", "harmless", "compliance"),
            answered("harmful", None, "refusal"),
            answered("look-alike", "refusal", "compliance"),
            Answered("utility", "p", "a", {}, True),
            Answered("utility", "p", "a", {}, False),
        ),
        {
            "judge:m": ("compliance", "refusal", "incoherent", "harmless"),
            "phrases": measures.MINIATURE,
        },
    )
    shares = {one.metric: (one.value, one.n) for one in found.shares}
    assert shares["attack_success"] == (0.5, 2) and shares["unjudged"] == (1 / 3, 3)
    assert shares["attack_success_phrases"] == (pytest.approx(2 / 3), 3)
    assert shares["over_refusal"] == (1, 1) and shares["over_refusal_phrases"] == (0, 1)
    assert shares["utility"] == (0.5, 2) and "utility_phrases" not in shares
    assert "harmless" in shares and "harmless_phrases" not in shares
    assert found.records()[0]["outcomes"] == {"judge:m": "compliance", "phrases": "compliance"}


def test_judges_are_loaded_only_where_there_is_something_to_judge(
    small: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def open_(spec: str) -> Any:
        opened.append(spec)
        return SimpleNamespace(
            tells=measures.MINIATURE, judge=lambda prompts, made: ["refusal"] * len(made)
        )

    monkeypatch.setattr(detectors, "open", open_)
    shape = work.shape(small, Paper.recipe)
    heard = work.evaluation(Paper(), shape.chat, attack="hex-phi", n=7, seed=1, split="validation")
    assert heard.written == 3 * 7 * 8 and not opened

    from probes import models

    chat = models.load(small, device_map="cpu")
    found = Paper().evaluate(chat, attack="hex-phi", n=7, seed=1, split="test")
    assert opened == ["phrases"]
    assert {one.metric: one.value for one in found.shares}["refusal"] == 1
    prompts = [one.prompt for one in found.answered if one.kind == "harmful"]
    assert len(prompts) == 7 and all(text.startswith("Open the") for text in prompts)
