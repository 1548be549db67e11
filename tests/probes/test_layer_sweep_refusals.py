"""What a person can get wrong: one message, exit code 2, no traceback, nothing half-written."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from probes import miniature
from probes.commands import run
from probes.errors import InputError
from probes.layer_sweep import SweepConfig, main

GOOD = "prompt,label\n" + "".join(f"request {i},{i % 2}\n" for i in range(40))


def text(content: str, name: str = "mine.csv"):
    """A case that writes one file and trains on it."""

    def make(folder: Path) -> dict:
        (folder / name).write_text(content)
        return {"train": (str(folder / name),)}

    return make


def raw(content: bytes, name: str):
    def make(folder: Path) -> dict:
        (folder / name).write_bytes(content)
        return {"train": (str(folder / name),)}

    return make


def fixed(**options):
    return lambda folder: options


def model(change):
    """A case with a copy of a miniature's folder that `change` spoils."""

    def make(folder: Path) -> dict:
        copy = folder / "model"
        shutil.copytree(miniature.folder("llama"), copy)
        change(copy)
        (folder / "mine.csv").write_text(GOOD)
        return {"models": (str(copy),), "train": (str(folder / "mine.csv"),)}

    return make


def edit(name: str, **changes):
    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])


def out_is_a_file(folder: Path) -> dict:
    (folder / "file").write_text("mine")
    return {"out": folder / "file" / "out"}


def same_names(folder: Path) -> dict:
    for name in ("a", "b"):
        (folder / name).mkdir()
        (folder / name / "mine.csv").write_text(GOOD)
    return {"train": tuple(str(folder / name / "mine.csv") for name in ("a", "b"))}


def many(n_harmful: int, group: str) -> str:
    rows = (f"request {i},{int(i < n_harmful)},{group.format(i=i)}\n" for i in range(40))
    return "prompt,label,group\n" + "".join(rows)


CASES = {
    # files
    "absent file": (fixed(train=("nowhere/mine.csv",)), "mine.csv"),
    "unknown set": (fixed(train=("advbensch",)), "advbench"),
    "unknown split": (fixed(train=("miniature:trian",)), "train"),
    "unknown suffix": (text(GOOD, "mine.xlsx"), "xlsx"),
    "empty file": (text(""), "mine.csv"),
    "header only": (text("prompt,label\n"), "mine.csv"),
    "no prompt column": (text("text,label\nhello,1\n"), "prompt"),
    "no label column": (text("prompt,harm\nhello,1\n"), "label"),
    "ragged row": (text(GOOD + "a,1,extra,more\n"), "mine.csv"),
    "broken JSON line": (text('{"prompt": "a", "label": 1}\n{"prompt": \n', "mine.jsonl"), "2"),
    "not Parquet": (raw(b"PAR1 no", "mine.parquet"), "mine.parquet"),
    "Latin-1": (raw("prompt,label\ncaf\xe9,1\n".encode("latin-1"), "mine.csv"), "UTF-8"),
    # rows
    "label 2": (text(GOOD + "another,2\n"), "label"),
    "label missing": (text(GOOD + "another,\n"), "label"),
    "empty prompt": (text(GOOD + ",1\n"), "prompt"),
    "blank prompt": (text(GOOD + "   ,1\n"), "prompt"),
    "one class": (text("prompt,label\n" + "".join(f"r {i},0\n" for i in range(40))), "label"),
    "repeated row": (text(GOOD + "request 1,1\n"), "line 42"),
    "contradiction": (text(GOOD + "request 1,0\n"), "line 42"),
    "last turn not the user's": (
        text('{"messages": [{"role": "assistant", "content": "hi"}], "label": 1}\n', "m.jsonl"),
        "user",
    ),
    "unknown role": (
        text('{"messages": [{"role": "robot", "content": "hi"}], "label": 1}\n', "m.jsonl"),
        "robot",
    ),
    "one harmful group": (text(many(1, "{i}")), "groups"),
    "one group": (text(many(20, "all")), "group"),
    "two sets of one name": (same_names, "mine"),
    # models
    "absent model": (fixed(models=("./nowhere/model",), train=("miniature:test",)), "nowhere"),
    "unknown miniature": (fixed(models=("miniature/gpt2",)), "gpt2"),
    "no train set for a model": (fixed(models=("org/model",)), "--train"),
    "no model": (fixed(models=()), "--models"),
    "no config.json": (model(lambda f: (f / "config.json").unlink()), "config.json"),
    "weights cut off": (model(cut), "model"),
    "more layers than weights": (model(edit("config.json", num_hidden_layers=9)), "missing"),
    "not decoder-only": (
        model(edit("config.json", model_type="t5", architectures=["T5Model"])), "t5",
    ),
    "vocabulary too small": (model(edit("config.json", vocab_size=50)), ""),
    "no chat template": (
        model(lambda f: (f / "chat_template.jinja").unlink()), "--chat-template",
    ),
    "broken chat template": (
        model(lambda f: (f / "chat_template.jinja").write_text("{% if %}")), "template",
    ),
    "revision of a folder": (fixed(models=("miniature/llama",), revision="main"), "revision"),
    # options and paths
    "absent template file": (fixed(chat_template="nowhere.jinja"), "nowhere.jinja"),
    "export of no layer": (fixed(export="first"), "first"),
    "export past the last layer": (fixed(export="99"), "99"),
    "remote without nnsight": (fixed(remote=True), "nnsight"),
    "one fold": (fixed(folds=1), "--folds"),
    "C of zero": (fixed(C=(0.0, 1.0)), "--C"),
    "rate of two": (fixed(fpr=2.0), "--fpr"),
    "no tokens in a batch": (fixed(token_budget=0), "--token-budget"),
    "prompts longer than allowed": (fixed(max_length=2), "--max-length"),
    "out below a file": (out_is_a_file, "file"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_is_refused_in_plain_words(name, tmp_path, capsys):
    make, named = CASES[name]
    given = tmp_path / "given"
    given.mkdir()
    options = {
        "models": ("miniature/llama",),
        "out": tmp_path / "out",
        "cache": tmp_path / "cache",
        "C": (1.0,),
        **make(given),
    }
    before = {path: path.read_bytes() for path in given.rglob("*") if path.is_file()}
    assert run(main, SweepConfig(**options)) == 2
    error = capsys.readouterr().err.split("error: ")[-1]
    assert named in error
    assert "Traceback" not in error
    assert len(error) < 700
    assert not (tmp_path / "out").exists()
    assert {path: path.read_bytes() for path in given.rglob("*") if path.is_file()} == before


def test_the_good_file_is_taken(tmp_path, capsys):
    """Positive control: what the cases spoil does work."""
    (tmp_path / "mine.csv").write_text(GOOD)
    config = SweepConfig(
        models=("miniature/llama",), train=(str(tmp_path / "mine.csv"),), C=(1.0,), folds=3,
        out=tmp_path / "out", cache=tmp_path / "cache",
    )  # fmt: skip
    assert run(main, config) == 0
    assert "error" not in capsys.readouterr().err
    assert (tmp_path / "out" / "scores.csv").exists()


@pytest.mark.parametrize(
    ("argument", "named"),
    [
        (("--modles", "x"), "modles"),
        (("--folds", "three"), "folds"),
        (("--backend", "jax"), "backend"),
        (("--hook-point", "resid"), "hook-point"),
        (("--dtype", "int8"), "dtype"),
    ],
)
def test_the_command_line_is_refused_by_name(argument, named):
    done = subprocess.run(
        [sys.executable, "-m", "probes.layer_sweep", *argument], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert named in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"train": ("a", "b"), "leave_one_out": True}, "it takes three"),
        ({"permutations": -1}, "--permutations -1"),
        ({"positions": ("last-input-token",) * 2}, "none of them twice"),
    ],
)
def test_what_cannot_be_asked_of_a_sweep(options, named):
    with pytest.raises(InputError, match=named):
        SweepConfig(**options).check()
