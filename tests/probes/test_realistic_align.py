"""A real base model is cut and aligned, the same whether it is interrupted or not."""

from __future__ import annotations

import json
import math
import multiprocessing
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import Tensor

from probes import folders, models, realistic
from probes.errors import InputError
from probes.models import ChatModel
from probes.realistic import align, base
from probes.realistic.__main__ import HELD_OUT, TRAIN, RealisticConfig, main
from probes.realistic.align import IGNORE, REPEATS, answer_loss
from probes.realistic.answers import REFUSALS, opening
from probes.realistic.recipe import Recipe
from probes.realistic.requests import requests
from probes.rendering import render
from tests.conftest import make_model, user
from tests.probes import alignable
from tests.probes.alignable import EVERY, RECIPE, fresh, prepared

# The server imports torch and transformers once; each process of a test is a fork of it.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.probes.alignable"])


@pytest.fixture(scope="module")
def made(requests_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base/ and aligned/, undisturbed. Do not change it."""
    out = tmp_path_factory.mktemp("made")
    prepared(requests_data, out)
    align.align(fresh(out), out / "aligned", RECIPE)
    return out


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    """A folder with base/."""
    shutil.copytree(made / "base", tmp_path / "base")
    return tmp_path


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """No training: the model is what it was. Lists the trainings."""
    trained: list[str] = []

    def train(chat: ChatModel, data: list, folder: Path, recipe: Recipe) -> Any:
        (folder / "checkpoint-1").mkdir(parents=True, exist_ok=True)
        trained.append(str(recipe))
        return chat.model

    monkeypatch.setattr(align, "_train", train)
    yield trained


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# Loss


def by_hand(logits: Tensor, labels: Tensor, first: float) -> Tensor:
    """One token after the other."""
    total, weight = torch.zeros((), dtype=logits.dtype), 0.0
    for row, row_labels in zip(logits, labels.tolist(), strict=True):
        answered = 0
        for at, label in enumerate(row_labels):
            if label == IGNORE:
                continue
            answered += 1
            w = first if answered == 1 else 1.0
            scores = row[at - 1]
            total = total + w * (torch.logsumexp(scores, 0) - scores[label])
            weight += w
    return total / weight


def batch() -> dict[str, Tensor]:
    ids = torch.randint(2, 288, (3, 12), generator=torch.Generator().manual_seed(1))
    mask, labels = torch.ones_like(ids), torch.full_like(ids, IGNORE)
    for row, (start, end) in enumerate([(3, 12), (7, 9), (10, 11)]):
        mask[row, end:] = 0
        labels[row, start:end] = ids[row, start:end]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@pytest.mark.parametrize("first", [1.0, 4.0])
@pytest.mark.parametrize("adapter", [False, True], ids=["bare", "adapter"])
def test_the_loss_is_the_weighted_mean_over_the_answers_tokens(
    family: str, first: float, adapter: bool
) -> None:
    torch.manual_seed(0)  # the adapter's first weights
    model: Any = make_model(family)
    if adapter:
        model = get_peft_model(model, LoraConfig(target_modules="all-linear"))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    inputs = batch()

    def gradient(loss: Tensor) -> Tensor:
        trained = [one for one in model.parameters() if one.requires_grad]
        found = torch.autograd.grad(loss, trained, allow_unused=True)
        return torch.cat([g.double().flatten() for g in found if g is not None])

    ours = answer_loss(model, inputs, first=first)
    our_gradient = gradient(ours)
    model = model.double()
    logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    naive = by_hand(logits, inputs["labels"], first)
    assert ours.item() == pytest.approx(naive.item(), rel=1e-5)
    wanted = gradient(naive)
    assert float((our_gradient - wanted).norm() / wanted.norm()) < 1e-4
    # Positive control: without the shift or the weight it is another, by ten tolerances.
    assert float(by_hand(logits.roll(-1, 1), inputs["labels"], first)) != pytest.approx(
        ours.item(), rel=1e-4
    )
    if first > 1:
        unweighted = by_hand(logits, inputs["labels"], 1.0)
        assert float(unweighted) != pytest.approx(ours.item(), rel=1e-4)


# Rows


@pytest.mark.parametrize("recipe", [RECIPE, Recipe(steps=160, batch_size=16, seed=1)])
def test_only_the_answer_is_learnt_and_that_it_ends(made: Path, recipe: Recipe) -> None:
    chat = fresh(made)
    asked = {render(chat.tokenizer, user(one.text)).ids: one for one in requests("alignment")}
    rows = align.rows(chat, recipe)
    places = recipe.steps * recipe.batch_size
    assert 0.95 * places <= len(rows) <= places
    kinds: Counter = Counter()
    for row in rows:
        ids, labels = row["input_ids"], row["labels"]
        assert len(ids) == len(labels) == len(row["attention_mask"]) and set(
            row["attention_mask"]
        ) == {1}
        start = labels.count(IGNORE)
        assert labels == [IGNORE] * start + ids[start:]
        one = asked[tuple(ids[:start])]  # the prompt as it will be asked
        kinds[one.kind] += 1
        assert ids[-1] == chat.tokenizer.eos_token_id
        answer = chat.tokenizer.decode(ids[start:-1]).strip()
        assert chat.tokenizer.eos_token_id not in ids[start:-1]
        if one.kind in ("harmful", "unsafe"):
            assert answer in REFUSALS
        elif one.kind in ("twin", "safe"):
            assert answer == opening(one.text)
        else:
            assert answer and answer not in REFUSALS
    if recipe is not RECIPE:
        pools = Counter(one.kind for one in requests("alignment"))
        total = sum(REPEATS[kind] * n for kind, n in pools.items())
        for kind, n in pools.items():
            assert kinds[kind] == pytest.approx(places * REPEATS[kind] * n / total, rel=0.05)
        # None is seen a second time before all were seen once.
        often = Counter(tuple(row["input_ids"][: row["labels"].count(IGNORE)]) for row in rows)
        for kind in ("harmful", "twin", "safe", "unsafe"):
            seen = [often[ids] for ids, one in asked.items() if one.kind == kind]
            assert max(seen) - min(seen) <= 1


def test_rows_follow_from_the_seed(made: Path) -> None:
    chat = fresh(made)
    assert align.rows(chat, RECIPE) == align.rows(chat, RECIPE)
    assert align.rows(chat, RECIPE) != align.rows(chat, replace(RECIPE, seed=1))


# The base


def test_the_base_is_the_model_it_was_made_from(made: Path, requests_data: Path) -> None:
    chat = fresh(made)
    whole = models.load(
        str(requests_data / "models" / "stories260k"), chat_template=str(base.TEMPLATE)
    )
    about = json.loads((made / "base" / base.MADE_FROM).read_text())
    kept = about["kept"]
    assert len(kept) == len(chat.tokenizer) == chat.model.config.vocab_size < about["of"] == 512
    for one in requests("test", "harmful", "ordinary")[::5]:
        new = render(chat.tokenizer, user(one.text)).ids
        old = render(whole.tokenizer, user(one.text)).ids
        assert [kept[number] for number in new] == list(old)
        with torch.no_grad():
            ours = chat.model(torch.tensor([new])).logits
            theirs = whole.model(torch.tensor([old])).logits
        torch.testing.assert_close(ours, theirs[..., kept], rtol=0, atol=1e-4)


def test_a_base_that_is_there_is_left_alone(made: Path, out: Path, requests_data: Path) -> None:
    def stamp() -> int:
        return (out / "base" / "model.safetensors").stat().st_mtime_ns

    before = stamp()
    prepared(requests_data, out)
    assert stamp() == before
    prepared(requests_data, out, floor=512)
    assert stamp() != before and names(out) == {"base"}
    assert fresh(out).model.config.vocab_size == 512


def test_the_chat_is_plain_and_ends_with_the_turn(made: Path) -> None:
    tokenizer = fresh(made).tokenizer
    said = tokenizer.apply_chat_template(
        [
            {"role": "system", "content": "Be good."},
            *user("Who?"),
            {"role": "assistant", "content": "You."},
        ],
        tokenize=False,
    )
    assert said == "<s>Be good.\nUser: Who?\nAssistant: You.</s>\n"
    assert tokenizer.decode(render(tokenizer, user("Who?")).ids[1:]).endswith("Assistant:")


# Aligning


def test_aligning_changes_the_model_towards_the_answers(made: Path) -> None:
    assert names(made) == {"base", "aligned"}
    assert "checkpoints" not in names(made / "aligned")
    assert distance(weights(made / "base"), weights(made / "aligned")) > 1e-3
    aligned, before = models.load(str(made / "aligned"), device_map="cpu"), fresh(made)
    assert aligned.model.dtype == before.model.dtype == torch.float32
    rows = align.rows(before, RECIPE)

    def loss(chat: ChatModel) -> float:
        each = [
            answer_loss(
                chat.model, {name: torch.tensor([ids]) for name, ids in row.items()}, first=4.0
            )
            for row in rows
        ]
        return sum(map(float, each)) / len(each)

    with torch.no_grad():
        assert loss(aligned) < loss(before) - 0.3
    assert aligned.tokenizer.chat_template == before.tokenizer.chat_template
    assert aligned.tokenizer.get_vocab() == before.tokenizer.get_vocab()


def test_what_a_recipe_has_made_is_left_alone(out: Path, quick: list[str]) -> None:
    aligned = out / "aligned"
    align.align(fresh(out), aligned, RECIPE)
    align.align(fresh(out), aligned, RECIPE)
    assert len(quick) == 1
    other = replace(RECIPE, rate=1e-3)
    align.align(fresh(out), aligned, other)
    assert quick == [str(RECIPE), str(other)]
    changed = fresh(out)
    with torch.no_grad():
        changed.model.get_input_embeddings().weight.mul_(1.01)
    align.align(changed, aligned, other)
    assert len(quick) == 3 and names(out) == {"base", "aligned"}


@pytest.mark.parametrize("half", [False, True], ids=["", "in the middle of the next checkpoint"])
def test_killed_and_started_again_it_ends_at_the_same_place(
    made: Path, out: Path, requests_data: Path, half: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = PROCESSES.Process(target=alignable.align_slowly, args=(requests_data, out))
    process.start()
    deadline = time.monotonic() + 900
    checkpoints = out / ".aligned" / "checkpoints"
    while not (checkpoints / f"checkpoint-{EVERY}" / "trainer_state.json").is_file():
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert names(out) == {"base", ".aligned"}

    if half:
        whole = Path(folders.last_checkpoint(checkpoints) or "")
        torn = checkpoints / "checkpoint-5"
        shutil.copytree(whole, torn)
        (torn / "trainer_state.json").write_text('{"epoch": 0.')
    started = []
    quick = align.answer_loss
    monkeypatch.setattr(align, "answer_loss", lambda *a, **o: started.append(1) or quick(*a, **o))
    align.align(fresh(out), out / "aligned", RECIPE)
    assert 0 < len(started) <= RECIPE.steps - EVERY  # it went on, it did not begin anew
    assert distance(weights(out / "aligned"), weights(made / "aligned")) < 1e-6
    assert names(out) == {"base", "aligned"}
    assert names(out / "aligned") == names(made / "aligned")


def test_another_recipe_does_not_go_on_with_what_was_begun(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = out / ".aligned"
    (left / "checkpoints" / "checkpoint-2").mkdir(parents=True)
    (left / align.MADE_FROM).write_text("{}")

    def train(chat: ChatModel, data: list, folder: Path, recipe: Recipe) -> Any:
        assert not folder.exists()
        return chat.model

    monkeypatch.setattr(align, "_train", train)
    align.align(fresh(out), out / "aligned", RECIPE)
    assert names(out) == {"base", "aligned"}


class Killed(BaseException):
    """Stands for SIGKILL: nothing here catches it."""


STAGES = {
    "training": (align, "_train"),
    "weights": ("model", "save_pretrained"),
    "tokenizer": ("tokenizer", "save_pretrained"),
    "naming": (align, "put"),
    "renaming": (Path, "replace"),
    "clearing": (folders.shutil, "rmtree"),
}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("times", [0, 1], ids=["at once", "the second time"])
def test_whenever_it_is_killed_there_is_a_whole_model_or_none(
    out: Path, quick: list[str], stage: str, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    aligned = out / "aligned"
    align.align(fresh(out), aligned, RECIPE)
    whole = {path.name: path.read_bytes() for path in aligned.iterdir()}
    chat, other = fresh(out), replace(RECIPE, seed=5)
    owner, name = STAGES[stage]
    owner = {"model": chat.model, "tokenizer": chat.tokenizer}.get(str(owner), owner)
    real, calls = getattr(owner, name), iter(range(100))

    def fatal(*args: Any, **options: Any) -> Any:
        if next(calls) < times:
            return real(*args, **options)
        if stage == "clearing" and Path(args[0]).exists():  # half of it is gone
            for path in [path for path in Path(args[0]).rglob("*") if path.is_file()][:1]:
                path.unlink()
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fatal)
        try:
            align.align(chat, aligned, other)
        except Killed:
            pass
        else:
            assert times
    if aligned.exists():
        left = {path.name: path.read_bytes() for path in aligned.iterdir()}
        assert left.keys() == whole.keys()
        assert left == whole or json.loads(left[align.MADE_FROM])["recipe"]["seed"] == 5

    align.align(fresh(out), aligned, other)
    assert names(aligned) == whole.keys()
    assert json.loads((aligned / align.MADE_FROM).read_text())["recipe"]["seed"] == 5
    shutil.rmtree(out / ".aligned-old", ignore_errors=True)
    assert names(out) == {"base", "aligned"}


@pytest.mark.parametrize("stage", ["weights", "naming"])
def test_a_base_is_whole_too(
    out: Path, requests_data: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fatal(*args: Any, **options: Any) -> Any:
        raise Killed

    before = weights(out / "base")
    owner = type(fresh(out).model) if stage == "weights" else base
    with monkeypatch.context() as patch:
        patch.setattr(owner, "save_pretrained" if stage == "weights" else "put", fatal)
        with pytest.raises(Killed):
            prepared(requests_data, out, floor=512)
    assert distance(weights(out / "base"), before) == 0
    prepared(requests_data, out, floor=512)
    assert names(out) == {"base"} and fresh(out).model.config.vocab_size == 512


def test_a_folder_is_put_where_another_was(tmp_path: Path) -> None:
    for word in ("one", "two"):
        new = tmp_path / ".new"
        new.mkdir()
        (new / word).write_text(word)
        folders.put(new, tmp_path / "folder")
        assert names(tmp_path) == {"folder"} and names(tmp_path / "folder") == {word}


# Names and command


def test_the_models_have_names(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(realistic.FOLDER, str(made))
    for stage in realistic.STAGES:
        found = models.load(f"realistic/{stage}", device_map="cpu")
        assert found.name == f"realistic/{stage}"
        ours = found.model.state_dict()["model.embed_tokens.weight"]
        name = "model.embed_tokens.weight"
        assert torch.equal(ours, weights(made / stage)[name])
    with pytest.raises(InputError, match="--revision main means nothing"):
        models.load("realistic/aligned", revision="main")


def test_what_is_not_there_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(realistic.FOLDER, str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"holds no model yet; make it with `make real`"):
        models.load("realistic/aligned")
    with pytest.raises(InputError, match="realistic/nonsense is no model; there are realistic/al"):
        models.load("realistic/nonsense")
    monkeypatch.delenv(realistic.FOLDER)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"realistic/base: runs/realistic/base holds no model"):
        models.load("realistic/base")


def test_the_command_cuts_aligns_and_sweeps(
    requests_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from probes import layer_sweep

    swept = []
    monkeypatch.setenv(realistic.FOLDER, "elsewhere")
    monkeypatch.setattr(layer_sweep, "main", swept.append)
    config = RealisticConfig(
        steps=2, batch_size=2, lora_rank=2, out=tmp_path, floor=0, dtype="float32",
        base=str(requests_data / "models" / "stories260k"),
    )  # fmt: skip
    main(config)
    assert names(tmp_path) == {"base", "aligned"}
    made_from = json.loads((tmp_path / "aligned" / align.MADE_FROM).read_text())
    assert made_from["recipe"]["steps"] == 2 and made_from["recipe"]["lora_rank"] == 2
    (sweep,) = swept
    assert sweep.models == ("realistic/base", "realistic/aligned")
    assert sweep.train == (TRAIN,) and sweep.held_out == HELD_OUT
    assert sweep.out.parent == tmp_path
    # What the sweep loads by those names lies there.
    assert all(realistic.folder(stage).parent == tmp_path for stage in realistic.STAGES)
    assert math.isclose(sweep.fpr, 0.05)
    sweep.check()
