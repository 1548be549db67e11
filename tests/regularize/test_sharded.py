"""Sharded over two processes, training goes the way of one; what is amiss is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from probes import models
from probes.errors import InputError
from regularize import sharding
from regularize.adapters import attach
from regularize.defences.adaptive_kl import AdaptiveKL
from regularize.defences.antidote import Antidote
from regularize.defences.lox import LoX
from regularize.fine_tuning import fine_tune
from regularize.train import TrainConfig
from tests.conftest import make_tokenizer
from tests.regularize.sharded import CASES, command, end_of
from tests.regularize.training import ROWS, adapted, distance, tiny, trained
from tests.torchrun import of_two, started, trained_by_two

SAME = 2e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes have trained all cases."""
    found = tmp_path_factory.mktemp("sharded")
    tiny().save_pretrained(found / "model")
    make_tokenizer().save_pretrained(found / "model")
    (found / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    return trained_by_two("tests.regularize.sharded", found)


@pytest.mark.parametrize("name", CASES)
def test_two_sharded_processes_end_where_one_whole_one_does(
    name: str, folder: Path, tmp_path: Path
) -> None:
    two, logged_by_two = of_two(folder, name)
    one, logged = end_of(name, tmp_path)
    assert distance(two, one) < SAME
    for ours, wanted in zip(logged_by_two, logged, strict=True):
        assert ours == pytest.approx(wanted, rel=1e-4, abs=1e-5)
    if CASES[name].get("defence") is None:
        kl = [entry["kl"] for entry in logged_by_two if "kl" in entry]
        assert abs(kl[0]) < 1e-6 < 1e-3 < kl[-1]


def test_the_comparison_tells_trainings_apart(folder: Path) -> None:
    """Positive control."""
    ends = [of_two(folder, name)[0] for name in ("cached", "reverse", "none", "clipped")]
    for i, end in enumerate(ends):
        assert all(distance(end, other) > 50 * SAME for other in ends[:i])


def test_a_resumed_run_ends_where_an_undisturbed_one_does(folder: Path) -> None:
    resumed = load_file(folder / "resumed.safetensors")
    assert distance(resumed, load_file(folder / "undisturbed.safetensors")) == 0
    checkpoint = load_file(
        folder / "resumed" / "out" / "checkpoint-3" / "adapter_model.safetensors"
    )
    whole = load_file(folder / "resumed" / "out" / "checkpoint-6" / "adapter_model.safetensors")
    last = {name.replace(".default", ""): tensor for name, tensor in resumed.items()}
    assert distance(whole, last) == 0
    assert distance(checkpoint, last) > 0.05  # positive control: it had some way to go


def test_what_is_amiss_is_said_before_the_first_step(folder: Path) -> None:
    said = json.loads((folder / "refused.json").read_text())
    assert "the reference moves with the policy" in said["adapter left on"]
    assert "other weights or other rows" in said["other rows"]
    assert "the model is not sharded" in said["copies"]


def test_the_commands_adapter_is_whole_and_loads(folder: Path, tmp_path: Path) -> None:
    config = command(folder, full=False)
    ours = load_file(config.out / "adapter_model.safetensors")
    fine_tune(of_one(config, tmp_path))
    assert distance(ours, load_file(tmp_path / "adapter_model.safetensors")) < 1e-4
    assert max(float(one.abs().max()) for one in ours.values()) > 1e-2
    chat = attach(models.load(config.model, device_map="cpu"), config.out)
    loaded = {n.replace(".default", ""): p for n, p in chat.model.named_parameters() if "lora" in n}
    assert distance(ours, loaded) == 0


def test_accelerate_launch_shards_as_well(folder: Path, tmp_path: Path) -> None:
    asked = ["--num_processes=2", "--num_machines=1", "--mixed_precision=no", "--use_fsdp",
             "--dynamo_backend=no", "--fsdp_version=2", "--fsdp_state_dict_type=FULL_STATE_DICT",
             "--fsdp_auto_wrap_policy=TRANSFORMER_BASED_WRAP", "--main_process_port=0"]  # fmt: skip
    config = command(folder, full=False)
    done = started(
        "regularize.train",
        "--model", config.model, "--data", str(config.data), "--out", str(tmp_path / "ft"),
        "--cache", str(tmp_path / "cache"), "--epochs", "1", "--batch-size", "2",
        "--learning-rate", str(config.learning_rate), "--reference", "adapter-off",
        "critic:column",
        launcher=("accelerate.commands.launch", *asked), timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    ours = load_file(tmp_path / "ft" / "adapter_model.safetensors")
    # A model that is not sharded would have been refused; and the reference is the other kind.
    assert distance(ours, load_file(config.out / "adapter_model.safetensors")) < 1e-4


def test_the_commands_whole_model_is_whole_and_loads(folder: Path, tmp_path: Path) -> None:
    config = command(folder, full=True)
    model = AutoModelForCausalLM.from_pretrained(config.out)
    assert type(model).__name__ == "LlamaForCausalLM" == model.config.architectures[0]
    fine_tune(of_one(config, tmp_path))
    one = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert distance(model.state_dict(), one.state_dict()) < 1e-4
    assert distance(model.state_dict(), tiny().state_dict()) > 1e-3  # it has learnt


def of_one(config: TrainConfig, out: Path) -> TrainConfig:
    """The same run by one process, which takes twice the batch."""
    from dataclasses import replace

    return replace(config, out=out, fsdp=False, batch_size=2 * config.batch_size)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"defence": LoX(), "base": "x"}, "LoX leaves a whole model"),
        ({"canary": "miniature:test"}, "read by one process"),
    ],
    ids=["whole-model", "canary"],
)
def test_what_needs_the_whole_model_is_refused_beforehand(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        TrainConfig(fsdp=True, **options).check()
    TrainConfig(fsdp=True).check()


@pytest.mark.parametrize(
    "defence", [Antidote(), AdaptiveKL(kl_budget=0.1)], ids=["after", "budget"]
)
def test_defences_that_look_between_the_steps_are_refused(defence: Any) -> None:
    class Arguments:
        deepspeed, fsdp, fsdp_config, world_size = None, True, {"version": 2}, 2

    with pytest.raises(InputError, match="looks at the model between the steps"):
        sharding.refuse(Arguments(), defence)  # type: ignore[arg-type]
    sharding.refuse(Arguments(), AdaptiveKL())  # type: ignore[arg-type]


@pytest.mark.parametrize("by", ["arguments", "accelerate launch"])
def test_deepspeed_is_refused(by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Arguments:
        deepspeed, fsdp = "zero3.json" if by == "arguments" else None, None

    if by != "arguments":
        monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(InputError, match="DeepSpeed takes the head apart"):
        sharding.refuse(Arguments(), AdaptiveKL())  # type: ignore[arg-type]


def test_a_reference_that_stays_passes_and_weights_are_put_back() -> None:
    model = adapted()
    before = trained(model)
    start = torch.cat([one.flatten() for one in before.values()])

    def far() -> float:
        now = torch.cat([one.flatten() for one in trained(model).values()])
        return float((now - start).abs().mean())

    options: dict[str, Any] = {"dtype": torch.float32, "start": True, "moves": True}
    sharding.check_reference(far, model, **options)
    assert distance(before, trained(model)) == 0
    with pytest.raises(InputError, match="moves with the policy"):
        sharding.check_reference(lambda: 0.0, model, **options)
    with pytest.raises(InputError, match="before the first step"):
        sharding.check_reference(lambda: float("nan"), model, **options)
    sharding.check_reference(lambda: 0.5, model, dtype=torch.float32, start=False, moves=False)
