"""Vaccine (arXiv 2402.01109): the two passes of its step by explicit loops over unpadded rows."""

from __future__ import annotations

import gc
import os
import random
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, Trainer

from probes.errors import InputError
from probes.models import ChatModel
from probes.ranks import leave
from regularize import defences, perturbed, plugins
from regularize.collate import collate
from regularize.data import IGNORE, Encoded, examples
from regularize.defences import Defence, Given, check_given
from regularize.defences.none import SFT
from regularize.defences.vaccine import Vaccine
from regularize.model import base_of
from regularize.perturbed import PerturbedTrainer, attentions, outputs, perturbations, shifted
from tests.conftest import FAMILIES, make_tokenizer
from tests.regularize.training import (
    ORDER,
    OTHER,
    SAME,
    adapted,
    arguments,
    distance,
    encoded,
    equal,
    run,
    states,
    tiny,
    trained,
    trainer,
)
from tests.torchrun import started

SAFE = [
    {
        "messages": [
            {"role": "user", "content": f"tell {'me ' * (i % 4)}{i}"},
            {"role": "assistant", "content": f"no {i}" + " never" * (i * 3 % 5)},
        ],
        "label": 1,
    }
    for i in range(8)
]
SHORT = Vaccine(epochs=1, batch_size=4, learning_rate=0.01)
"""Two steps."""


def given_to(model: Any, seed: int = 0) -> Given:
    return Given(
        ChatModel("tiny", None, model, make_tokenizer()), safe=tuple(examples(SAFE)), seed=seed
    )


# The step


def nll(model: Any, row: Encoded, shifts: Sequence[Tensor | float]) -> Tensor:
    """Of one row's answer, summed, in the model's own number format; with other methods in place
    of the attention modules' own, which add the shifts."""

    def shifting(forward: Any, shift: Tensor | float) -> Any:
        def instead(*args: Any, **options: Any) -> Any:
            hidden, *rest = forward(*args, **options)
            return hidden + shift, *rest

        return instead

    ids, labels = torch.tensor(row.input_ids), torch.tensor(row.labels)
    with ExitStack() as stack:
        for layer, shift in zip(base_of(model).model.layers, shifts, strict=True):
            instead = shifting(layer.self_attn.forward, shift)
            stack.enter_context(mock.patch.object(layer.self_attn, "forward", instead))
        body = base_of(model).model(input_ids=ids[None], use_cache=False)
        log_q = base_of(model).lm_head(body.last_hidden_state)[0, :-1].log_softmax(-1)
    answer = labels[1:] != IGNORE
    return -log_q[answer].gather(1, labels[1:][answer][:, None]).sum()


def n_answer(rows: Sequence[Encoded]) -> int:
    return sum(label != IGNORE for row in rows for label in row.labels)


def worst(
    model: Any, rows: Sequence[Encoded], rho: float, *, each: bool = False
) -> list[list[Tensor]]:
    """rho g_l / (G + 1e-7) of each row and layer. `each`: the control, by each layer's own norm."""
    n, width = base_of(model).config.num_hidden_layers, base_of(model).config.hidden_size
    kind = next(model.parameters()).dtype
    zeros = [
        [torch.zeros(len(row.input_ids), width, dtype=kind, requires_grad=True) for _ in range(n)]
        for row in rows
    ]
    total = torch.zeros((), dtype=kind)
    for row, zero in zip(rows, zeros, strict=True):
        total = total + nll(model, row, zero)
    flat = [one for zero in zeros for one in zero]
    gradients = torch.autograd.grad(total / n_answer(rows), flat)
    squares = [float(gradient.square().sum()) for gradient in gradients]
    found = []
    for i, gradient in enumerate(gradients):
        layer = squares[i % n :: n] if each else squares
        found.append(rho * gradient / (sum(layer) ** 0.5 + 1e-7))
    return [found[i : i + n] for i in range(0, len(found), n)]


def naive_training(
    model: Any, rho: float, *, each: bool = False, wiped: bool = False
) -> dict[str, Tensor]:
    """Three steps of two batches of two rows each, by SGD. `wiped`: the control, where a batch's
    first pass forgets what the batches before have gathered."""
    rows = encoded()
    for step in range(3):
        chosen = [rows[step * 4 + i] for i in range(4)]
        batches = (chosen[:2], chosen[2:])
        total = torch.zeros(())
        for batch in batches[1:] if wiped else batches:
            for row, shifts in zip(batch, worst(model, batch, rho, each=each), strict=True):
                total = total + nll(model, row, shifts)
        parameters = [p for p in model.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(total / n_answer(chosen), parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter -= 0.1 * gradient
    return trained(model)


def ours(folder: Path, model: Any, rho: float | None, **options: Any) -> dict[str, Tensor]:
    """The same by the trainer; by transformers' own for a rho of None."""
    parts = {
        "max_steps": 3,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        **ORDER,
    }
    kind = Trainer if rho is None else partial(PerturbedTrainer, rho=rho)
    one = kind(
        model,
        arguments(folder, remove_unused_columns=False, **{**parts, **options}),
        train_dataset=[row._asdict() for row in encoded()],
        data_collator=partial(collate, pad=0),
    )
    one.train()
    return trained(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_training_goes_the_printed_way(family: str, tmp_path: Path) -> None:
    """Rows of 2 to 40 answer tokens, padded here and not there; two batches a step."""

    def model() -> Any:
        return adapted(tiny(family))

    wanted = naive_training(model(), 0.5)
    assert distance(ours(tmp_path, model(), 0.5), wanted) < SAME
    for rho, control in ((0.0, {}), (0.5, {"each": True}), (0.5, {"wiped": True})):
        assert distance(naive_training(model(), rho, **control), wanted) > OTHER


def test_a_whole_model_goes_the_same_way(tmp_path: Path) -> None:
    args = {"learning_rate": 0.02, "optim": "adamw_torch"}
    found = [ours(tmp_path, tiny(), rho, **args) for rho in (None, 0.0, 0.5)]
    assert equal(found[0], found[1])
    assert distance(found[0], found[2]) > OTHER


@pytest.mark.parametrize("optimizer", ["sgd", "adamw_torch"])
def test_without_perturbation_it_is_transformers_own_training(
    optimizer: str, tmp_path: Path
) -> None:
    found = [ours(tmp_path, adapted(), rho, optim=optimizer) for rho in (None, 0.0)]
    assert equal(*found)
    assert not equal(ours(tmp_path, adapted(), 1e-3, optim=optimizer), found[0])


def test_checkpointing_activations_changes_nothing(tmp_path: Path) -> None:
    """The backward pass computes them anew, perturbed too."""
    checkpointed = ours(tmp_path, adapted(), 0.5, gradient_checkpointing=True)
    assert distance(checkpointed, ours(tmp_path, adapted(), 0.5)) < SAME


@settings(deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 4)), min_size=1, max_size=4),
    rho=st.floats(1e-3, 10),
    seed=st.integers(0, 2**16),
)
def test_the_perturbation_is_the_printed_one(
    sizes: list[tuple[int, int]], rho: float, seed: int
) -> None:
    """In fp64; of norm rho over all layers, and no other of that norm is as bad to first order."""
    make = torch.Generator().manual_seed(seed)

    def flat(tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat([one.flatten() for one in tensors])

    hidden, scales, other = (
        [torch.randn(size, generator=make, dtype=torch.float64) for size in sizes] for _ in range(3)
    )
    for one in hidden:
        one.requires_grad_()
    found = perturbations((flat(scales) * flat(hidden).square()).sum() / 2, hidden, rho)
    assert [one.shape for one in found] == [one.shape for one in hidden]
    slopes = (flat(scales) * flat(hidden)).detach()
    norm = sum(number**2 for number in slopes.tolist()) ** 0.5
    torch.testing.assert_close(flat(found), rho * slopes / (norm + 1e-7), rtol=1e-9, atol=0)
    assert not flat(found).requires_grad
    elsewhere = rho * flat(other) / flat(other).norm()
    worst_slope = float(slopes @ flat(found)) * (norm + 1e-7) / norm
    assert float(slopes @ elsewhere) <= worst_slope * (1 + 1e-9)


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_padding_is_not_perturbed_and_changes_nothing(family: str, padding: Any) -> None:
    """Against rows one by one, without padding; and the loss rises along it by rho G."""
    model, chosen, rho = tiny(family).double(), encoded()[:3], 1e-3
    batch = collate([row._asdict() for row in chosen], pad=0, side=padding)
    labels, real = batch["labels"], batch["attention_mask"].bool()
    assert not real.all()

    def loss() -> Tensor:
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        # The mean over answer tokens: the others' labels are ignored.
        return torch.nn.functional.cross_entropy(logits[:, :-1].mT, labels[:, 1:])

    modules = attentions(model)
    with outputs(modules) as hidden:
        before = loss()
    gradients = torch.autograd.grad(before, hidden, retain_graph=True)
    found = perturbations(before, hidden, rho)
    for row, wanted in enumerate(worst(model, chosen, rho)):
        for layer, one in enumerate(wanted):
            # Norms and rotations are in fp32 at any format of the weights.
            torch.testing.assert_close(found[layer][row, real[row]], one, atol=1e-8, rtol=1e-4)
    assert all(not one[~real].any() for one in found)
    slope = sum(float(g.square().sum()) for g in gradients) ** 0.5
    with torch.no_grad(), shifted(modules, found):
        assert float(loss() - before) == pytest.approx(rho * slope, rel=0.02)


def test_where_nothing_can_be_worse_nothing_is_perturbed() -> None:
    hidden = [torch.ones(2, 3, requires_grad=True) for _ in range(2)]
    found = perturbations(0 * hidden[0].sum() + 0 * hidden[1].sum(), hidden, 2.0)
    assert all(torch.equal(one, torch.zeros(2, 3)) for one in found)


def test_no_hook_stays() -> None:
    model = tiny()
    modules = attentions(model)
    assert modules == [layer.self_attn for layer in model.model.layers]
    ids = torch.arange(5)[None]
    before = model(ids).logits
    with pytest.raises(KeyboardInterrupt), shifted(modules, [torch.tensor(1.0)] * 2):
        assert not torch.equal(model(ids).logits, before)
        raise KeyboardInterrupt
    assert torch.equal(model(ids).logits, before)
    assert not any(module._forward_hooks for module in model.modules())


# The stage


def marks(model: Any) -> dict[str, Any]:
    """All that training could leave behind, but for the values of the weights."""
    return {
        "modules": [
            (name, type(one), id(one), one.training) for name, one in model.named_modules()
        ],
        "parameters": [
            (name, id(p), p.dtype, p.requires_grad, p.grad) for name, p in model.named_parameters()
        ],
        "hooks": [len(one._forward_hooks) + len(one._backward_hooks) for one in model.modules()],
        "attributes": sorted(vars(model)),
        "forward": "forward" in vars(model),
        "config": model.config.to_dict(),
        "generation": model.generation_config.to_dict(),
    }


def chance() -> list[Any]:
    return [random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_stage_leaves_a_model_with_other_weights_alone(
    family: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model, other = tiny(family), tiny(family)
    next(model.parameters()).requires_grad_(False)
    left, weights, drawn, elsewhere = marks(model), states(model), chance(), states(other)
    assert SHORT.before(given_to(model)) is SHORT
    assert marks(model) == left and chance() == drawn and equal(states(other), elsewhere)
    assert capfd.readouterr() == ("", "")
    changed = {name for name, t in states(model).items() if not torch.equal(t, weights[name])}
    linear = {
        f"{name}.weight"
        for name, one in model.named_modules()
        if isinstance(one, torch.nn.Linear) and name != "lm_head"
    }
    assert changed == linear


def test_without_perturbation_it_is_plain_fine_tuning_on_the_safe_data(tmp_path: Path) -> None:
    """transformers' own, with its adapter merged; and the defaults are the released code's."""
    model, defence = tiny(), replace(SHORT, rho=0.0, r=4, alpha=6)
    defence.before(given_to(model, seed=5))
    plain = tiny()
    args = defence.arguments(str(tmp_path), plain, 5)
    assert (args.weight_decay, args.warmup_steps, args.lr_scheduler_type) == (0.1, 0.1, "cosine")
    torch.manual_seed(args.seed)
    policy = get_peft_model(
        plain, LoraConfig(r=4, lora_alpha=6, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    rows = [row._asdict() for row in encoded(SAFE)]
    Trainer(policy, args, train_dataset=rows, data_collator=partial(collate, pad=0)).train()
    policy.merge_and_unload()
    assert equal(states(model), states(plain))
    perturbed = tiny()
    replace(defence, rho=2.0).before(given_to(perturbed, seed=5))
    assert distance(states(perturbed), states(plain)) > OTHER


def test_the_run_s_seed_draws_another_one() -> None:
    ends = []
    for seed in (0, 0, 1):
        model = tiny()
        SHORT.before(given_to(model, seed=seed))
        ends.append(states(model))
    assert equal(ends[0], ends[1]) and not equal(ends[0], ends[2])
    assert SHORT.arguments("", tiny(), 0).seed not in (0, SHORT.arguments("", tiny(), 1).seed)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
def test_a_stage_that_is_stopped_leaves_the_model_as_it_was(stop: Any) -> None:
    model = tiny()
    left, weights, drawn = marks(model), states(model), chance()
    good, calls = perturbed.PerturbedTrainer.compute_loss, []

    def fails(*args: Any, **options: Any) -> Any:
        calls.append(None)
        if len(calls) == 4:  # the second step's second pass, under hooks
            raise stop
        return good(*args, **options)

    with (
        mock.patch.object(perturbed.PerturbedTrainer, "compute_loss", fails),
        pytest.raises(stop),
    ):
        SHORT.before(given_to(model))
    assert len(calls) == 4
    assert marks(model) == left and equal(states(model), weights) and chance() == drawn


@pytest.mark.parametrize("full", [False, True], ids=["adapter", "full"])
def test_fine_tuning_goes_on_from_there(full: bool, tmp_path: Path) -> None:
    """As plain fine-tuning of a model that has been through the stage."""
    args = {**ORDER, "learning_rate": 0.02 if full else 0.1}
    model = tiny()
    SHORT.before(given_to(model, seed=3))
    wanted = run(tmp_path, model=model, defence=SFT(), full=full, args=args)
    found = run(tmp_path, defence=SHORT, safe=examples(SAFE), full=full, args=args)
    assert equal(found, wanted)
    assert distance(run(tmp_path, defence=SFT(), full=full, args=args), wanted) > OTHER


def test_a_resumed_run_does_the_stage_again(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "defence": SHORT,
        "safe": examples(SAFE),
        "args": {"save_strategy": "steps", "save_steps": 3, "optim": "adamw_torch"},
    }
    wanted = run(tmp_path, **options)
    one = trainer(tmp_path, **options)
    one.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-3"))
    assert equal(trained(one.model), wanted)
    fresh = tiny()
    SHORT.before(given_to(fresh, seed=3))
    assert equal(states(one.model.unload()), states(fresh))


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_number_formats(dtype: torch.dtype, bf16: bool, tmp_path: Path) -> None:
    """The stage's own need not be that of the training after it."""
    model = tiny().to(dtype)
    before = states(model)
    one = trainer(
        tmp_path, model=model, defence=SHORT, safe=examples(SAFE), args={"bf16": bf16, **ORDER}
    )
    assert {p.dtype for p in base_of(one.model).parameters() if not p.requires_grad} == {dtype}
    after = states(one.model.unload())
    assert not equal(after, before) and all(t.isfinite().all() for t in after.values())
    if dtype == torch.bfloat16:  # to what the other format says, up to roundings
        wide = tiny()
        SHORT.before(given_to(wide, seed=3))
        moved, wanted = (
            torch.cat([(end[name].float() - t).flatten() for name, t in states(tiny()).items()])
            for end in (after, states(wide))
        )
        assert torch.nn.functional.cosine_similarity(moved, wanted, dim=0) > 0.8


# In several processes


def two_processes(folder: Path) -> None:
    """Batches of two rows each; what both ended with."""
    gc.freeze()
    rank = os.environ["RANK"]
    step = ours(folder, adapted(), 0.5, gradient_accumulation_steps=1)
    save_file(step, folder / f"step-{rank}.safetensors")
    args = {"per_device_train_batch_size": 2, **ORDER}
    one = trainer(folder, defence=SHORT, safe=examples(SAFE), args=args)
    one.train()
    save_file(states(one.model), folder / f"all-{rank}.safetensors")


def test_two_processes_go_the_way_of_one(tmp_path: Path) -> None:
    """A step's batches are theirs, instead of one after the other; both end with one model."""
    done = started(__name__, str(tmp_path), timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    found = {path.stem: load_file(path) for path in tmp_path.glob("*.safetensors")}
    assert distance(found["step-0"], ours(tmp_path, adapted(), 0.5)) < SAME
    assert distance(found["step-0"], ours(tmp_path, adapted(), 0.0)) > OTHER
    for name in ("step", "all"):
        assert equal(found[f"{name}-0"], found[f"{name}-1"])


# What cannot be


def test_what_means_nothing_is_refused() -> None:
    Vaccine(rho=0).check()
    with pytest.raises(InputError, match=r"--defence.rho -1: must not be negative"):
        Vaccine(rho=-1).check()
    for name in ("epochs", "learning_rate", "batch_size", "r", "alpha"):
        with pytest.raises(
            InputError, match=f"--defence.{name.replace('_', '-')} 0: must be more than zero"
        ):
            Vaccine(**{name: 0}).check()


def test_it_needs_safe_data() -> None:
    with pytest.raises(InputError, match=r"Vaccine needs safe data .* give --safe"):
        check_given(Vaccine(), {"safe": ()})
    assert plugins.found(defences, Defence)["vaccine"] is Vaccine


def test_attention_modules_that_are_not_found_are_named() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=288, n_embd=32, n_layer=2, n_head=4)).eval()
    left, weights = marks(model), states(model)
    with pytest.raises(InputError, match="no attention output was found in block 0 of GPT2LMHead"):
        SHORT.before(given_to(model))
    assert marks(model) == left and equal(states(model), weights)


if __name__ == "__main__":
    two_processes(Path(sys.argv[1]))
    leave(0)
