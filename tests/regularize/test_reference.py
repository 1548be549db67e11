"""The cached reference: the model's own distribution, kept, resumed, and never another's."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from probes.blocks import evaluating
from probes.errors import InputError
from regularize import reference
from regularize.collate import collate
from regularize.data import IGNORE
from regularize.losses import Hidden, Moments
from regularize.model import answers_of
from regularize.reference import AdapterOff, Batch, Cached, Copied, choose
from tests.conftest import make_model
from tests.regularize import reference_builder
from tests.regularize.reference_builder import SHARD, build
from tests.regularize.training import encoded, tiny

# The server imports torch and transformers once; each process of a test is a fork of it.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.regularize.reference_builder"])


@pytest.fixture(autouse=True)
def _six_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "SHARD", SHARD)


def batch_of(rows: list[int], *, side: Any = "right") -> Batch:
    chosen = [{**encoded()[i]._asdict(), "row": i} for i in rows]
    batch = collate(chosen, pad=7, side=side)
    answer = answers_of(batch["labels"])
    return Batch(batch["input_ids"], batch["attention_mask"], answer, batch["row"])


@torch.no_grad()
def by_hand(model: Any, rows: list[int]) -> tuple[Tensor, Tensor]:
    """E_p[w] and -H(p) - <p, b>, from the full logits of one row after the other."""
    mu, c = [], []
    head = model.get_output_embeddings()
    bias = 0.0 if head.bias is None else head.bias.double()
    for i in rows:
        row = encoded()[i]
        logits = model(input_ids=torch.tensor([row.input_ids])).logits[0].double()
        p = logits[:-1].softmax(-1)[torch.tensor(row.labels)[1:] != IGNORE]
        mu.append(p @ head.weight.double())
        c.append((p * (p.log() - bias)).sum(-1))
    return torch.cat(mu), torch.cat(c)


@contextmanager
def counting(model: Any) -> Iterator[list[int]]:
    """Sizes of the batches that the decoder reads."""
    calls: list[int] = []

    def count(module: object, inputs: object, options: dict[str, Tensor]) -> None:
        calls.append(len(options["input_ids"]))

    handle = model.get_decoder().register_forward_pre_hook(count, with_kwargs=True)
    yield calls
    handle.remove()


def shards(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.glob("reference-*/shard-*"))


def contents(cache: Path) -> dict[str, bytes]:
    return {str(p.relative_to(cache)): p.read_bytes() for p in cache.rglob("*") if p.is_file()}


# What is kept


@pytest.mark.parametrize("side", ["right", "left"])
def test_it_keeps_the_moments_of_the_models_own_distribution(side: str, tmp_path: Path) -> None:
    model = tiny()
    cached = build(tmp_path, model=model)
    for rows in ([0], [5, 1, 11], [3, 3], list(range(12))):
        found = cached.at(batch_of(rows, side=side))
        assert isinstance(found, Moments)
        mu, c = by_hand(model, rows)
        torch.testing.assert_close(found.mu.double(), mu, rtol=0, atol=1e-5)
        torch.testing.assert_close(found.c.double(), c, rtol=0, atol=1e-5)
        wrong = by_hand(model, [(i + 1) % 12 for i in rows])[0]  # positive control
        assert wrong.shape != mu.shape or not torch.allclose(wrong, mu, atol=0.05)


@pytest.mark.parametrize("side", ["right", "left"])
def test_hidden_states_are_those_of_the_other_references(side: str, tmp_path: Path) -> None:
    """Also while the policy is trained with dropout."""
    model = tiny(dropout=0.5).train()
    kept = build(tmp_path, model=model, hidden=True)
    copied, off = Copied(model), AdapterOff(with_adapter(tiny(dropout=0.5)).train())
    with torch.no_grad():
        undisturbed = Copied(tiny())
        model.lm_head.weight.add_(1)  # training goes on: the copy stays
        model.model.norm.weight.mul_(2)
    for rows in ([4], [2, 10, 7]):
        batch = batch_of(rows, side=side)
        found = [one.at(batch) for one in (kept, copied, off)]
        for one in found:
            assert isinstance(one, Hidden)
            torch.testing.assert_close(one.hidden, undisturbed.at(batch).hidden, rtol=0, atol=1e-5)
        assert torch.equal(found[1].head.weight, found[2].head.weight)
        assert not torch.equal(found[1].head.weight, model.lm_head.weight)


def with_adapter(model: Any) -> Any:
    """An adapter that is far from zero."""
    from peft import get_peft_model

    from tests.regularize.training import lora

    found = get_peft_model(model, lora())
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    return found


def test_a_trained_heads_reference_is_the_head_as_it_was(tmp_path: Path) -> None:
    model = tiny()
    before = model.lm_head.weight.detach().clone()
    kept = build(tmp_path, model=model, trains_head=True)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    found = kept.at(batch_of([0]))
    assert isinstance(found, Hidden) and torch.equal(found.head.weight, before)


def test_building_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model = tiny().train()
    model.lm_head.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    build(tmp_path, model=model)
    assert {name: module.training for name, module in model.named_modules()} == modes
    with evaluating(model):
        assert not any(module.training for module in model.modules())


# Kept once, resumed, checked


def test_equal_is_found_again_and_another_has_another_folder(tmp_path: Path) -> None:
    with counting(model := tiny()) as calls:
        build(tmp_path, model=model)
        assert sum(calls) == 12
        before = contents(tmp_path)
        calls.clear()
        build(tmp_path, model=model)
    assert not calls and contents(tmp_path) == before

    other_weights = tiny(seed=1)
    nearly = tiny()
    with torch.no_grad():
        nearly.model.norm.weight[3] += 1e-3
    rows = encoded()
    relabelled = [*rows[:-1], rows[-1]._replace(labels=[IGNORE, *rows[-1].labels[1:-1], IGNORE])]
    different: list[dict[str, Any]] = [
        {"model": other_weights},
        {"model": nearly},
        {"model": tiny().to(torch.bfloat16)},
        {"rows": rows[:-1]},
        {"rows": rows[::-1]},
        {"rows": relabelled},
        {"hidden": True},
    ]
    for n, options in enumerate(different, 2):
        build(tmp_path, **options)
        assert len(list(tmp_path.iterdir())) == n
    assert {name: contents(tmp_path)[name] for name in before} == before


@pytest.mark.parametrize("goal", [0, 1, 4])
def test_killed_while_it_is_built_it_goes_on_at_the_first_missing_shard(
    goal: int, tmp_path: Path
) -> None:
    undisturbed, cache = tmp_path / "undisturbed", tmp_path / "cache"
    build(undisturbed)
    assert len(shards(undisturbed)) == 6
    process = PROCESSES.Process(target=reference_builder.build_slowly, args=(cache,))
    process.start()
    deadline = time.monotonic() + 60
    while len(shards(cache)) < goal or not list(cache.glob("*/manifest.json")):
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.002)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    done = len(shards(cache))
    assert goal <= done < 6

    with counting(model := tiny()) as calls:
        build(cache, model=model)
    assert sum(calls) == 12 - done * SHARD
    assert contents(cache) == contents(undisturbed)


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "swapped", "unreadable"])
def test_a_damaged_shard_is_named_and_alone_made_anew(damage: str, tmp_path: Path) -> None:
    build(tmp_path)
    whole = contents(tmp_path)
    [path] = tmp_path.glob("*/shard-00002*")
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[-5] ^= 1
    elif damage == "cut":
        del data[-3:]
    elif damage == "swapped":
        data = bytearray(path.with_name("shard-00003.safetensors").read_bytes())
    elif damage == "unreadable":
        data[:8] = b"\xff" * 8
    path.write_bytes(b"" if damage == "empty" else bytes(data))
    with pytest.raises(InputError, match=r"shard-00002\.safetensors.*Delete this file"):
        build(tmp_path)
    path.unlink()
    with counting(model := tiny()) as calls:
        build(tmp_path, model=model)
    assert sum(calls) == SHARD
    assert contents(tmp_path) == whole


def test_the_numbers_do_not_depend_on_the_batches(tmp_path: Path) -> None:
    batch = batch_of(list(range(12)))
    one, alone = (build(tmp_path / str(n), token_budget=n).at(batch) for n in (4096, 1))
    for ours, wanted in zip(one, alone, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-5)
    with counting(model := tiny()) as calls:
        build(tmp_path / "counted", model=model, token_budget=1)
    assert calls == [1] * 12


# The choice


def test_auto_is_cached_where_the_disk_has_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, model = encoded(), tiny()
    n_bytes = 4 * 33 * sum(label != IGNORE for row in rows for label in row.labels)
    assert choose("auto", model, rows, tmp_path / "not" / "yet") == "cached"

    def free(n: int) -> None:
        usage = type("Usage", (), {"free": n})
        monkeypatch.setattr(reference.shutil, "disk_usage", lambda path: usage)

    free(2 * n_bytes)
    assert choose("auto", model, rows, tmp_path) == "cached"
    free(2 * n_bytes - 1)
    assert choose("auto", model, rows, tmp_path) == "copy"
    assert choose("auto", with_adapter(tiny()), rows, tmp_path) == "adapter-off"
    assert choose("cached", model, rows, tmp_path) == "cached"
    assert list(tmp_path.iterdir()) == []


def test_without_an_adapter_there_is_none_to_switch_off() -> None:
    with pytest.raises(InputError, match="needs an adapter to switch off"):
        AdapterOff(make_model("llama"))


def test_the_cache_of_a_model_with_an_adapter_is_of_the_model_without(tmp_path: Path) -> None:
    batch = batch_of([1, 6])
    plain = build(tmp_path / "plain").at(batch)
    adapted = with_adapter(tiny())
    off = Cached.build(tmp_path / "off", adapted, encoded()).at(batch)
    for ours, wanted in zip(off, plain, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-5)
    merged = build(tmp_path / "on", model=adapted.merge_and_unload()).at(batch)
    assert not torch.allclose(merged[0], plain[0], atol=0.01)
