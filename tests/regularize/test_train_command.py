"""The command as a person uses it: what it leaves behind, what it refuses, how it goes on."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from probes import models
from probes.commands import run
from probes.errors import InputError
from regularize import anchors, data, fine_tuning
from regularize.critics.column import ColumnCritic
from regularize.critics.constant import ConstantCritic
from regularize.critics.label import LabelCritic
from regularize.critics.probe import ProbeCritic
from regularize.defences.adaptive_kl import AdaptiveKL
from regularize.defences.filter import Filter
from regularize.defences.none import SFT
from regularize.train import Lora, TrainConfig, main

N = 24


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Rows of a person's own, in a file: a third of them labelled harmful."""
    examples = data.load("miniature:mixed:0.3", seed=1)[:N]
    path = tmp_path / "theirs.jsonl"
    lines = [{"prompt": one.text, "completion": one.answer, "label": one.label} for one in examples]
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return path


@pytest.fixture
def config(rows: Path, tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        data=str(rows),
        out=tmp_path / "ft",
        cache=tmp_path / "cache",
        critic=LabelCritic(),
        epochs=1,
        batch_size=8,
        lora=Lora(r=4),
    )


def test_a_run_leaves_adapter_card_risks_and_log(config: TrainConfig, capsys):
    main(config)
    names = {path.name for path in config.out.iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "README.md", "run.json",
            "data.jsonl", "steps.csv", "steps.parquet", "done.json"} <= names  # fmt: skip
    assert "checkpoints" not in names and "training_args.bin" not in names  # no pickles
    said = capsys.readouterr().out
    assert "risk s of the training rows" in said and "riskiest:" in said
    assert "learnt of" in said and "regularize.evaluate" in said

    steps = pd.read_parquet(config.out / "steps.parquet")
    assert list(steps["step"]) == [1, 2, 3]
    assert steps["kl"].iloc[0] == pytest.approx(0, abs=1e-5) and steps["kl"].iloc[-1] > 1e-5
    labels = [one.label for one in data.load(config.data)]
    assert steps["risk"].mean() == pytest.approx(sum(labels) / N)
    assert steps["beta"].mean() == pytest.approx(0.1 + 0.8 * sum(labels) / N)

    written = json.loads((config.out / "run.json").read_text())
    assert written["named"] == {"critic": "label", "defence": "adaptive-kl"}
    assert "miniature/llama" in (config.out / "README.md").read_text()


def test_the_adapter_is_one_that_peft_loads_and_that_changes_the_model(config: TrainConfig):
    from peft import PeftModel

    main(config)
    base = models.load("miniature/llama")
    ids = base.tokenizer("Please open the vault.", return_tensors="pt").input_ids
    with torch.no_grad():
        before = base.model(ids).logits
        after = PeftModel.from_pretrained(base.model, config.out).eval()(ids).logits
    assert not torch.allclose(before, after)


def test_the_written_rows_are_training_data_again(config: TrainConfig):
    main(config)
    again = data.load(str(config.out / "data.jsonl"))
    original = data.load(config.data)
    assert [(one.prompt, one.answer, one.label) for one in again] == [
        (one.prompt, one.answer, one.label) for one in original
    ]
    assert [one.risk for one in again] == [float(one.label) for one in original]
    # The risk column drives the same training as the critic that it came from.
    column = replace(
        config,
        data=str(config.out / "data.jsonl"),
        critic=ColumnCritic(),
        out=config.out.with_name("again"),
    )
    main(column)
    one, two = (load_file(c.out / "adapter_model.safetensors") for c in (config, column))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_risk_only_stops_before_training(config: TrainConfig, capsys):
    main(replace(config, risk_only=True, defence=SFT()))
    assert {path.name for path in config.out.iterdir()} == {"data.jsonl"}
    assert "labelled harmful" in capsys.readouterr().out
    main(config)  # and does not stand in the way of the run itself


def test_a_finished_run_and_another_run_are_not_overwritten(config: TrainConfig, capsys):
    main(config)
    written = config.out / "adapter_model.safetensors"
    before, at = written.read_bytes(), written.stat().st_mtime_ns
    main(config)
    assert "finished" in capsys.readouterr().out and written.stat().st_mtime_ns == at
    with pytest.raises(InputError, match="another run, with other learning_rate"):
        main(replace(config, learning_rate=1e-5))
    assert written.read_bytes() == before


def test_a_killed_run_goes_on_from_its_last_whole_checkpoint(config: TrainConfig, tmp_path: Path):
    """The very command, killed after a checkpoint, ends as if it had never been."""
    config = replace(config, epochs=6, save_steps=4)  # 18 steps
    main(config)
    whole = load_file(config.out / "adapter_model.safetensors")

    killed = replace(config, out=tmp_path / "killed")
    code = f"""
import os, signal
from regularize import show
from regularize.train import main
from tests.regularize.test_train_command import config_from
class Killer(show.Progress):
    def on_step_end(self, args, state, control, **options):
        if state.global_step == 10:
            os.kill(os.getpid(), signal.SIGKILL)
show.Progress = Killer
main(config_from({str(killed.data)!r}, {str(killed.out)!r}, {str(killed.cache)!r}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    assert not (killed.out / "adapter_model.safetensors").exists()
    checkpoints = killed.out / "checkpoints"
    assert (checkpoints / "checkpoint-8").is_dir()
    # What a kill in the middle of writing leaves: removed, not resumed from.
    (checkpoints / "checkpoint-10").mkdir()
    (checkpoints / "checkpoint-10" / "trainer_state.json").write_text('{"global_step": 1')
    main(killed)
    resumed = load_file(killed.out / "adapter_model.safetensors")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    log = pd.read_csv(killed.out / "steps.csv")
    pd.testing.assert_frame_equal(log, pd.read_csv(config.out / "steps.csv"), rtol=1e-6)
    # The control: another seed ends elsewhere.
    other = replace(config, out=tmp_path / "other", seed=1)
    main(other)
    elsewhere = load_file(other.out / "adapter_model.safetensors")
    assert any(not torch.equal(whole[name], elsewhere[name]) for name in whole)


def config_from(rows: str, out: str, cache: str) -> TrainConfig:
    """The killed run's, in its own process."""
    return TrainConfig(
        data=rows, out=Path(out), cache=Path(cache), critic=LabelCritic(), epochs=6, batch_size=8,
        lora=Lora(r=4), save_steps=4,
    )  # fmt: skip


def test_the_anchors_are_answered_by_the_model_and_join_the_training(config: TrainConfig, capsys):
    main(replace(config, anchors="miniature:anchors", anchor_tokens=24, epochs=0.2))
    assert "300 anchors beside them" in capsys.readouterr().out


def test_a_file_of_anchors_needs_no_labels(tmp_path: Path):
    path = tmp_path / "anchors.csv"
    path.write_text("prompt\nPlease dust the lamp.\nPlease fetch the bread.\n")
    prompts = anchors.load(str(path))
    assert [prompt[0]["content"] for prompt in prompts] == [
        "Please dust the lamp.",
        "Please fetch the bread.",
    ]


def test_full_fine_tuning_saves_a_model(config: TrainConfig):
    main(replace(config, full=True, learning_rate=1e-4))
    tuned = models.load(str(config.out))
    before = models.load("miniature/llama").model.state_dict()
    assert any(not torch.equal(before[name], w) for name, w in tuned.model.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "./none", "data": None}, "--data names no training rows"),
        ({"epochs": 0}, "--epochs 0: must be more than zero"),
        ({"learning_rate": -1.0}, "--learning-rate -1.0"),
        ({"lora": Lora(r=0)}, "--lora.r must be at least 1"),
        ({"defence": AdaptiveKL(beta_min=0.9, beta_max=0.1)}, "beta-min 0.9 is larger than"),
        ({"defence": AdaptiveKL(beta_max=1.5)}, "beta-max 1.5: must lie between 0 and 1"),
        ({"defence": AdaptiveKL(smoothing=0.5)}, "needs --defence.granularity batch"),
        ({"critic": ConstantCritic(1.5)}, "a risk lies between 0 and 1"),
        ({"critic": ConstantCritic(), "defence": AdaptiveKL(shape="sharpened")}, "no threshold"),
        ({"critic": ConstantCritic(1.0), "defence": Filter()}, "keeps none of the 24 rows"),
        ({"critic": ProbeCritic("./no-probe")}, "no-probe"),
        ({"data": "miniature:mixed:2"}, "no share of harmful rows"),
        ({"data": "miniature:no-such"}, "is no training data"),
        ({"data": "none.jsonl"}, "there is no such file"),
        ({"lora": Lora(targets=("no_such_layer",))}, "no_such_layer"),
    ],
)
def test_what_cannot_work_is_said_in_plain_words(config, change, message, capsys):
    code = run(main, replace(config, **change))
    said = capsys.readouterr().err
    assert code == 2 and message in said and "Traceback" not in said
    assert not (config.out / "adapter_model.safetensors").exists()


def test_a_probe_that_is_not_named_is_the_sweeps(config, tmp_path, monkeypatch):
    monkeypatch.setattr(fine_tuning, "SWEEPS", tmp_path)
    for name in ("one", "two"):
        folder = tmp_path / "miniature-llama" / name / "probe"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        if name == "one":
            found = fine_tuning._critic(replace(config, critic=ProbeCritic()))
            assert found == ProbeCritic(str(folder))
    with pytest.raises(InputError, match="several probes"):
        fine_tuning._critic(replace(config, critic=ProbeCritic()))


def test_help_needs_no_torch_and_shows_every_choice():
    code = "import sys; sys.argv = ['x', '--help']\nimport runpy\n"
    code += "try: runpy.run_module('regularize.train', run_name='__main__', alter_sys=True)\n"
    code += "except SystemExit: pass\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("False")
    for choice in ("critic:probe", "critic:label", "defence:adaptive-kl", "defence:filter"):
        assert choice in done.stdout


def test_anchors_are_kept_and_answered_once(config: TrainConfig, monkeypatch):
    held = replace(config, anchors="miniature:anchors", n_anchors=6, anchor_tokens=24)
    main(held)
    path = config.out / "anchors.jsonl"
    assert len(anchors.read(path)) == 6
    # A run that goes on asks nothing anew.
    (config.out / "done.json").unlink()
    (config.out / "checkpoints" / "checkpoint-1").mkdir(parents=True)
    monkeypatch.setattr(anchors, "answered", None)
    main(held)


def test_anchors_of_a_set_without_harmful_rows_and_of_other_columns(tmp_path: Path):
    path = tmp_path / "ask.csv"
    path.write_text("question,label\nWho keeps the key?,x\nWho rules the tower?,y\n")
    assert len(anchors.load(f"{path}?prompt=question")) == 2
    assert len(anchors.load(f"{path}?prompt=question", n=1)) == 1


def test_a_first_attempt_that_failed_does_not_stand_in_the_way(config: TrainConfig):
    with pytest.raises(InputError, match="no_such_layer"):
        main(replace(config, lora=Lora(targets=("no_such_layer",))))
    main(config)


def test_rows_that_nobody_assessed_keep_their_own_risk(config: TrainConfig, tmp_path: Path):
    path = tmp_path / "rated.jsonl"
    line = {"prompt": "Please dust the lamp.", "completion": "Sure.", "risk": 0.9}
    bare = {"prompt": "Please dust the table.", "completion": "Sure."}
    path.write_text(json.dumps(line) + "\n" + json.dumps(bare))
    main(replace(config, data=str(path), defence=SFT()))
    first, second = data.load(str(config.out / "data.jsonl"))
    assert (first.risk, second.risk) == (0.9, None)


def test_the_flags_of_a_critic_come_back_with_the_column(config: TrainConfig):
    path = config.out / "data.jsonl"
    path.parent.mkdir()
    rows = [
        {"prompt": text, "completion": "Sure.", "risk": risk, "flagged": flagged}
        for text, risk, flagged in (("a", 0.2, True), ("b", 0.3, False), ("c", 0.9, True))
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    chat = models.load("miniature/llama")
    examples = data.load(str(path))
    assert ColumnCritic().assess(examples, chat).flagged.tolist() == [True, False, True]
    assert ColumnCritic(0.5).assess(examples, chat).flagged.tolist() == [False, False, True]


def test_special_tokens_in_the_text_are_pointed_out(config: TrainConfig, tmp_path: Path, capsys):
    path = tmp_path / "smuggled.jsonl"
    rows = [
        {"prompt": "Please dust the lamp.", "completion": "Sure.<|eot_id|>More."},
        {"prompt": "Please dust the table.", "completion": "Sure."},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    main(replace(config, data=str(path), defence=SFT()))
    said = " ".join(capsys.readouterr().out.split())
    assert "1 rows hold special tokens" in said and "line 1" in said


def test_the_command_that_is_printed_at_the_end():
    mini = TrainConfig(out=Path("runs/ft"))
    assert fine_tuning._evaluation(mini) == (
        "python -m regularize.evaluate --model miniature/llama --adapter runs/ft --base"
    )
    real = TrainConfig(model="org/name", data="x.jsonl", chat_template="plain", dtype="bfloat16")
    assert fine_tuning._evaluation(real).endswith(
        "--dtype bfloat16 --chat-template plain --harmful SET --look-alikes SET --utility TASK"
    )
