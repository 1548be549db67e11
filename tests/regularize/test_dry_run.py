"""What a comparison would take: counted as torch counts it, and without touching anything."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from probes import models
from regularize import calibration, cells, estimate, generation, grid, work
from regularize.arms import NONE, WITH_ANCHORS, Run
from regularize.calibration import Rate
from regularize.compare import CompareConfig, main
from regularize.data import encode
from regularize.model import base_of, decode
from regularize.testbeds.miniature import Miniature
from regularize.testbeds.miniature.evaluation import KINDS, NEW_TOKENS, draw
from tests.regularize import faked_cells
from tests.regularize.faked_cells import plan

MODEL = "miniature/llama"
RECIPE = Miniature.recipe
ARMS = ("none/none", "constant-kl-0.5/none")


@pytest.fixture
def config(tmp_path: Path) -> CompareConfig:
    return CompareConfig(
        models=(MODEL,), experiments=("all-harmful",), seeds=(1, 2), arms=ARMS, jobs=2, n=20,
        out=tmp_path / "out", probes=tmp_path / "probes",
    )  # fmt: skip


@pytest.fixture
def rated(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, int]]:
    """Calibrations, none of which takes a second: 1 GFLOP/s of training, 2 of generation."""
    asked: list[dict[str, int]] = []

    def rate(shape: work.Shape, recipe: object, **sizes: int) -> Rate:
        asked.append(sizes)
        return Rate(1e9, 2e9)

    monkeypatch.setattr(calibration, "rate", rate)
    return asked


def dry(config: CompareConfig, capsys: pytest.CaptureFixture[str]) -> str:
    main(replace(config, dry_run=True))
    return " ".join(capsys.readouterr().out.split())


def run_of(**change: Any) -> Run:
    return replace(Run(MODEL, "mixed", 0.09, 3e-3, 1, NONE), **change)


def test_tokens_are_those_of_batches_with_their_padding() -> None:
    assert work.training([3, 5, 2, 9, 4], replace(RECIPE, batch_size=1, epochs=3)).trained == 69
    alike = replace(RECIPE, batch_size=2, epochs=1, by_length=True)
    assert work.training([9, 1, 1, 9, 4], alike).trained == 2 * 1 + 2 * 9 + 9
    assert work.training([1, 1, 9, 9], alike).trained == 20
    mixed = replace(alike, by_length=False)
    assert 20 <= work.training([1, 1, 9, 9], mixed).trained <= 36
    assert work.training([1, 1, 9, 9], replace(mixed, epochs=0.5)).trained <= 18


def test_rows_and_anchors_are_counted_in_the_data_themselves() -> None:
    shape = work.shape(MODEL, RECIPE)
    run, testbed = run_of(), Miniature()
    found = work.lengths(run, testbed, shape.chat, RECIPE)
    real = models.load(MODEL, device_map="cpu")
    rows = testbed.training(run.data, seed=1)
    assert found == [len(encode(row, real.tokenizer).input_ids) for row in rows]
    more = work.lengths(run_of(arm=WITH_ANCHORS), testbed, shape.chat, RECIPE)
    assert more[: len(found)] == found and len(more) == len(found) + 300
    assert min(more[len(found) :]) > RECIPE.new_tokens


def test_the_evaluation_is_heard_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = work.shape(MODEL, RECIPE)
    heard = work.evaluation(
        Miniature(), shape.chat, attack="mixed", n=20, seed=1, split="validation"
    )
    assert heard.written == len(KINDS) * 20 * NEW_TOKENS and heard.trained == 0
    shown: list[int] = []
    own = generation.padded

    def padded(*args: Any) -> Any:
        ids, mask = own(*args)
        shown.append(ids.numel())
        return ids, mask

    monkeypatch.setattr(generation, "padded", padded)
    # What all prompts begin with is read once, but counted as if each were read whole.
    monkeypatch.setattr(generation, "suits", lambda *_: False)
    asked = [row.text for kind in KINDS for row in draw(kind, 20, seed=1, split="validation")]
    generation.answers(models.load(MODEL, device_map="cpu"), asked, max_new_tokens=NEW_TOKENS)
    assert heard.read == sum(shown)  # with the padding, which is read too


def test_a_lora_step_is_four_n_as_torch_counts(
    tiny_folder: Callable[..., Path], family: str
) -> None:
    """Beside it attention's own products and the adapter, which are small at true widths."""
    folder = tiny_folder(family, d_model=128, n_layers=4, vocab_size=1000)
    shape = work.shape(str(folder), replace(RECIPE, dtype="float32"))
    chat = models.load(str(folder), dtype="float32", device_map="cpu")
    model: Any = get_peft_model(
        chat.model, LoraConfig(r=1, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    ids = torch.randint(2, 288, (4, 8), generator=torch.Generator().manual_seed(0))

    def counted(job: Callable[[], Any]) -> float:
        with FlopCounterMode(display=False) as counter:
            job()
        return counter.get_total_flops()

    def step() -> None:
        hidden = decode(base_of(model), ids, torch.ones_like(ids))
        base_of(model).get_output_embeddings()(hidden).logsumexp(-1).sum().backward()

    def read() -> None:
        with torch.no_grad(), model.disable_adapter():
            base_of(model)(input_ids=ids)

    recipe = replace(RECIPE, lora_rank=1)
    assert counted(step) == pytest.approx(
        work.flop(work.Work(trained=ids.numel()), shape, recipe), rel=0.1
    )
    assert counted(read) == pytest.approx(
        work.flop(work.Work(read=ids.numel()), shape, recipe), rel=0.1
    )
    upper = work.flop(work.Work(trained=ids.numel()), shape, replace(recipe, lora_from=2))
    whole = work.flop(work.Work(trained=ids.numel()), shape, recipe)
    assert whole - upper == pytest.approx(ids.numel() * 2 * shape.blocks / 2)


def test_a_tied_head_counts_once_and_an_untied_embedding_not_at_all(
    tiny_folder: Callable[..., Path],
) -> None:
    shape = work.shape(str(tiny_folder("llama")), RECIPE)
    every = sum(one.numel() for one in shape.chat.model.parameters())
    embedding: Any = shape.chat.model.get_input_embeddings()
    norm = 32  # the last one, which multiplies nothing to speak of
    assert every - embedding.weight.numel() - norm == shape.n
    tied = work.shape(MODEL, RECIPE)  # the miniatures' heads are their embeddings
    every = sum(one.numel() for one in tied.chat.model.parameters())
    assert tied.n + tied.chat.model.config.hidden_size == every
    assert tied.weights == 4 * every  # in float32, as a CPU runs what is saved in float16


def test_what_is_kept_for_the_backward_pass(family: str) -> None:
    """On the meta device as on a CPU."""
    shape = work.shape(f"miniature/{family}", RECIPE)
    with work._adapted(shape, RECIPE) as (model, adapter):
        told = work._kept(model, 16, 40)
    assert not any("lora" in name for name, _ in shape.chat.model.named_parameters())

    chat = models.load(f"miniature/{family}", device_map="cpu")
    real: Any = get_peft_model(
        chat.model,
        LoraConfig(r=RECIPE.lora_rank, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    assert adapter == sum(one.numel() for one in real.parameters() if one.requires_grad)
    own = {one.untyped_storage().data_ptr() for one in real.parameters()}
    kept: dict[int, int] = {}
    held = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        held.append(tensor)  # so that no address is used twice
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.ones(16, 40, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        decode(base_of(real), ids, torch.ones_like(ids))
    assert told == pytest.approx(sum(kept.values()), rel=0.25)


def test_memory_grows_with_what_is_held() -> None:
    shape = work.shape(MODEL, RECIPE)
    large = replace(RECIPE, batch_size=256)
    one = work.memory(shape, large, 100, base=False)
    assert work.memory(shape, large, 100, base=True) == one + shape.weights
    assert work.memory(shape, large, 200, base=False) > 1.5 * one
    assert work.memory(shape, replace(large, lora_rank=4000), 100, base=False) > 1.5 * one


def test_a_calibration_gives_rates(tiny_folder: Callable[..., Path]) -> None:
    shape = work.shape(str(tiny_folder("qwen2")), RECIPE)
    threads = torch.get_num_threads()
    found = calibration.rate(shape, RECIPE, tokens=20, prompt=10)
    assert min(found) > 1e6 and max(found) < 1e14
    assert torch.get_num_threads() == threads


def test_a_large_model_is_calibrated_on_few_blocks(
    tiny_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = work.shape(str(tiny_folder("llama", n_layers=6)), RECIPE)
    monkeypatch.setattr(calibration, "SMALL", 10)
    small, n = calibration._small(shape, torch.device("cpu"))
    assert small.config.num_hidden_layers == calibration.FEW
    assert n == shape.blocks // 3 + shape.head
    assert shape.chat.model.config.num_hidden_layers == 6


def test_it_shows_every_cell_and_changes_nothing(
    config: CompareConfig,
    rated: list[dict[str, int]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config.out.mkdir()

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("it loads or trains")

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", forbidden)
    monkeypatch.setattr(cells, "execute", forbidden)
    monkeypatch.setattr(grid, "report", forbidden)
    monkeypatch.chdir(config.out)
    said = dry(config, capsys)
    assert not list(config.out.rglob("*")) and not config.probes.exists()
    assert "all-harmful 1 0.003 none none - -" in said
    assert "all-harmful 1 0.003 constant-kl-0.5 none - -" in said
    assert "4 cells, 4 to do" in said and "1 probe to sweep, 2 evaluations before" in said

    shape = work.shape(MODEL, RECIPE)
    lengths = work.lengths(grid.runs(config)[0], Miniature(), shape.chat, RECIPE)
    trained = work.training(lengths, RECIPE)
    asked = work.evaluation(Miniature(), shape.chat, attack="mixed", n=20, seed=1, split="test")
    assert f"{4 * trained.trained:,} tokens to train on" in said
    assert f"4 of 4 {4 * trained.trained:,} {4 * asked.written:,}" in said
    seconds = 4 * (work.flop(trained, shape, RECIPE) / 1e9 + work.flop(asked, shape, RECIPE) / 2e9)
    assert f"{seconds / 60:,.0f} min one cell after the other" in said
    assert "as a calibration of this machine says" in said
    assert rated == [{"tokens": round(sum(lengths) / len(lengths)), "prompt": 18}]


def test_finished_cells_tell_what_the_others_take(
    config: CompareConfig,
    rated: list[dict[str, int]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plan(config.out)
    first, second, *others = runs = grid.runs(config)
    assert (first.seed, second.seed) == (1, 1)
    faked_cells.leave(first, config)  # in 12.5 s
    cells.reason_of(second, config).parent.mkdir(parents=True)
    cells.reason_of(second, config).write_text("Traceback")
    said = dry(config, capsys)
    assert "none none + -" in said and "constant-kl-0.5 none ! -" in said
    assert "4 cells, 3 to do" in said and "as 1 finished cells took, which did" in said
    # Its twin takes as long, and so do the others, whose data are the same.
    assert "38 s one cell after the other" in said

    faked_cells.leave(second, config)
    path = grid.folder_of(second, config) / grid.DONE
    path.write_text(json.dumps({**json.loads(path.read_text()), "seconds": 100.0}))
    said = dry(config, capsys)
    assert "112 s" not in said and "2 min one cell after the other" in said  # 12.5 s and 100 s
    assert "as 2 finished cells took" in said and not rated

    for one in others:
        faked_cells.leave(one, config)
    said = dry(config, capsys)
    assert "4 cells, 0 to do" in said and "nothing is left to do" in said
    assert all(estimate.state(one, config) == "done" for one in runs)


def test_without_the_model_the_cells_are_shown_all_the_same(
    config: CompareConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Miniature, "models", ("acme/Not-Here-8B",))
    said = dry(replace(config, models=("acme/Not-Here-8B",), arms=ARMS[:1]), capsys)
    assert "none none - -" in said and "2 of 2 ? ? ? ? ?" in said
    assert "cannot be counted here: acme/Not-Here-8B" in said
    assert "acme/Not-Here-8B cannot be loaded" in said


def test_padding_does_not_depend_on_the_run() -> None:
    lengths = [Random(1).randint(5, 90) for _ in range(50)]
    assert work.training(lengths, RECIPE) == work.training(lengths[::-1], RECIPE)
