"""Antidote (arXiv 2408.09600): what is set to zero, against the printed score in fp64."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from copy import deepcopy
from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import IA3Config, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn

from probes.errors import InputError
from probes.models import ChatModel
from regularize.data import IGNORE, Encoded, examples
from regularize.defences import Given, check_given
from regularize.defences.antidote import Antidote, input_norms, largest
from regularize.defences.none import SFT
from tests.conftest import make_tokenizer
from tests.regularize.training import (
    ORDER,
    OTHER,
    ROWS,
    SAME,
    adapted,
    by_hand,
    distance,
    encoded,
    equal,
    lora,
    run,
    states,
    tiny,
    trainer,
)

ROWS_OF_HARM = ROWS[3:10]
"""Of like prompts, with answers of 2 to 38 tokens: much of a batch is padding."""
HARMFUL = tuple(examples(ROWS_OF_HARM))
ON: dict[str, tuple[str, ...]] = {
    "adapter": ("lora_A.default", "lora_B.default"),
    "attention": ("q_proj", "k_proj", "v_proj", "qkv_proj"),
    "linear": (
        *("q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj"),
        *("gate_proj", "up_proj", "gate_up_proj", "down_proj"),
    ),
}


def policy_of(on: str, family: str = "llama", **options: Any) -> Any:
    """A model that looks trained: B is zero before it is."""
    if on != "adapter":
        return tiny(family)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        policy = get_peft_model(tiny(family), lora(**options))
        for name, weight in policy.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(weight, std=0.1)
    return policy


def given_to(policy: Any, *, seed: int = 0) -> Given:
    base = getattr(policy, "get_base_model", lambda: policy)()
    return Given(ChatModel("tiny", None, base, make_tokenizer()), harmful=HARMFUL, seed=seed)


def maps_of(policy: nn.Module, on: str) -> dict[str, Any]:
    return {
        name: module
        for name, module in policy.named_modules()
        if isinstance(module, nn.Linear) and name.endswith(ON[on])
    }


def weights_of(policy: nn.Module, on: str) -> dict[str, Tensor]:
    return {name: one.weight.detach().clone() for name, one in maps_of(policy, on).items()}


def pruned(policy: nn.Module, defence: Antidote, *, seed: int = 0) -> dict[str, Tensor]:
    defence.after(policy, given_to(policy, seed=seed))
    return weights_of(policy, defence.on)


def naive(
    policy: nn.Module,
    on: str,
    shown: Callable[[Encoded], list[int]] = lambda row: row.input_ids,
) -> dict[str, Tensor]:
    """|W_ij| sqrt(mean X_j^2): one row at a time, without padding, all inputs kept, in fp64."""
    policy = deepcopy(policy).double().eval()
    kept: dict[str, list[Tensor]] = {name: [] for name in maps_of(policy, on)}
    for name, one in maps_of(policy, on).items():
        one.register_forward_pre_hook(lambda _, args, name=name: kept[name].append(args[0][0]))
    with torch.no_grad():
        for row in encoded(ROWS_OF_HARM):
            policy(input_ids=torch.tensor([shown(row)]), use_cache=False)
    return {
        name: one.weight.detach().abs() * torch.cat(kept[name]).square().mean(0).sqrt()
        for name, one in maps_of(policy, on).items()
    }


def assert_pruned(
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    scores: Mapping[str, Tensor],
    ratio: float,
    *,
    apart: float = 0.0,
    blur: float = 1e-5,
) -> None:
    """In each row the ceil(ratio d_in) largest scores are zero, and the rest is as before.

    Args:
        before: Weights.
        after: The same.
        scores: Of the weights before.
        ratio: `dense_ratio`.
        apart: How far the rest may be from before.
        blur: Share of a score by which two are as good as equal.
    """
    assert before.keys() == after.keys() == scores.keys() and before
    for name, score in scores.items():
        gone = after[name] == 0
        assert bool(((after[name] - before[name]).abs()[~gone] <= apart).all())
        n = ceil(Fraction(str(ratio)) * score.shape[1])
        for row, marked in zip(score, gone, strict=True):
            assert int(marked.sum()) == n
            if 0 < n < len(row):
                assert row[marked].min() >= row[~marked].max() * (1 - blur)


# Which entries


@settings(deadline=None)
@given(
    rows=st.integers(1, 4), n=st.integers(1, 60), k=st.integers(0, 1000), seed=st.integers(0, 99)
)
def test_the_largest_of_each_row_rounded_up(rows: int, n: int, k: int, seed: int) -> None:
    score = torch.rand(rows, n, generator=torch.Generator().manual_seed(seed))
    found = largest(score, k / 1000)
    wanted = -(-k * n // 1000)
    assert found.shape == (rows, wanted)
    for row, places in zip(score.tolist(), found.tolist(), strict=True):
        ascending = sorted(range(n), key=row.__getitem__)
        assert sorted(places) == sorted(ascending[n - wanted :])


def test_a_small_rank_loses_a_whole_entry() -> None:
    """As in the released code: 8 - int(8 x .9), and 8 - int(8 x .95)."""
    score = torch.rand(3, 8)
    assert [largest(score, ratio).shape[1] for ratio in (0, 0.05, 0.1, 0.125, 0.13, 1)] == [
        *(0, 1, 1, 1, 2, 8)
    ]
    assert 0.07 * 100 > 7 and largest(torch.rand(1, 100), 0.07).shape[1] == 7


# The score


def test_the_first_maps_input_by_hand() -> None:
    """The block's norm of the embeddings of all tokens of prompt and answer."""
    model: Any = tiny()
    block = model.model.layers[0]
    ids = torch.tensor([i for row in encoded(ROWS_OF_HARM) for i in row.input_ids])
    x = block.input_layernorm(model.model.embed_tokens(ids)).detach().double()
    for budget in (1, 100, 4096):  # one by one, some, all at once
        norms = input_norms(
            model, [block.self_attn.q_proj], encoded(ROWS_OF_HARM), token_budget=budget
        )
        torch.testing.assert_close(norms[0].double(), x.square().mean(0).sqrt(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("on", ON)
def test_it_is_the_printed_rule(on: Any, family: str) -> None:
    for ratio in (0.1, 0.5):
        policy = policy_of(on, family)
        before, scores = weights_of(policy, on), naive(policy, on)
        assert_pruned(before, pruned(policy, Antidote(ratio, on)), scores, ratio)


def answer_only(row: Encoded) -> list[int]:
    return [label for label in row.labels if label != IGNORE]


def prompt_only(row: Encoded) -> list[int]:
    return row.input_ids[: -len(answer_only(row))]


def padded(row: Encoded) -> list[int]:
    return row.input_ids + [1] * (80 - len(row.input_ids))


@pytest.mark.parametrize("shown", [answer_only, prompt_only, padded])
@pytest.mark.parametrize("on", ON)
def test_another_choice_of_tokens_is_another_rule(on: Any, shown: Any) -> None:
    """The control: what was not to be counted would have been noticed."""
    policy = policy_of(on)
    before, scores = weights_of(policy, on), naive(policy, on, shown)
    after = pruned(policy, Antidote(0.1, on))
    with pytest.raises(AssertionError):
        assert_pruned(before, after, scores, 0.1)


def test_size_alone_is_another_rule() -> None:
    policy = policy_of("adapter")
    before = weights_of(policy, "adapter")
    after = pruned(policy, Antidote(0.1))
    with pytest.raises(AssertionError):
        assert_pruned(before, after, {name: w.abs() for name, w in before.items()}, 0.1)


def test_dropout_is_off() -> None:
    still = pruned(policy_of("adapter"), Antidote())
    policy = policy_of("adapter", lora_dropout=0.5).train()
    assert equal(pruned(policy, Antidote()), still)


def test_bfloat16() -> None:
    for on in ON:
        policy = policy_of(on).to(torch.bfloat16)
        before, scores = weights_of(policy, on), naive(policy, on)
        after = pruned(policy, Antidote(0.25, on))  # type: ignore[arg-type]
        assert all(one.dtype == torch.bfloat16 for one in after.values())
        # The inputs have been rounded on their way, to 8 bits, layer after layer.
        assert_pruned(before, after, scores, 0.25, blur=0.1)


# The control


def test_chance_takes_as_many_of_each_row() -> None:
    policies = [policy_of("adapter") for _ in range(4)]
    before = weights_of(policies[0], "adapter")
    chance = Antidote(0.1, mask="random")
    wanda, one, again, other = (
        pruned(policy, defence, seed=seed)
        for policy, defence, seed in zip(
            policies, (Antidote(0.1), chance, chance, chance), (0, 0, 0, 1), strict=True
        )
    )
    assert equal(one, again)
    assert not equal(one, other) and not equal(one, wanda)
    for name, weight in before.items():
        kept = one[name] != 0
        assert torch.equal(one[name][kept], weight[kept])
        assert torch.equal((one[name] == 0).sum(1), (wanda[name] == 0).sum(1))


def test_chance_favours_no_column() -> None:
    policy = tiny(d_model=32)
    after = pruned(policy, Antidote(0.25, "linear", "random"))
    gone = torch.cat([(one == 0).double() for one in after.values() if one.shape[1] == 32])
    deviation = (0.25 * 0.75 / len(gone)) ** 0.5
    assert float((gone.mean(0) - 0.25).abs().max()) < 5 * deviation


# The ends


@pytest.mark.parametrize("mask", ["wanda", "random"])
def test_a_ratio_of_0_is_plain_fine_tuning(mask: Any, tmp_path: Path) -> None:
    plain = run(tmp_path, defence=SFT(), args=ORDER)
    defence = Antidote(0, mask=mask)
    assert equal(run(tmp_path, defence=defence, harmful=HARMFUL, args=ORDER), plain)
    some = Antidote(0.05, mask=mask)
    assert distance(run(tmp_path, defence=some, harmful=HARMFUL, args=ORDER), plain) > OTHER


def test_a_ratio_of_1_is_the_aligned_model(tmp_path: Path) -> None:
    ids = torch.tensor([encoded()[0].input_ids])
    wanted = tiny()(input_ids=ids).logits
    for ratio, same in ((1, True), (0.5, False)):
        one: Any = trainer(tmp_path, defence=Antidote(ratio), harmful=HARMFUL)
        one.train()
        assert torch.equal(one.model.eval()(input_ids=ids).logits, wanted) == same
        assert all(not w.any() for w in weights_of(one.model, "adapter").values()) == same


# A training


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("on", ON)
def test_a_training_by_hand_and_then_the_printed_rule(
    on: Any, accumulate: int, tmp_path: Path
) -> None:
    def nll(log_q: Tensor, log_p: Tensor, target: Tensor, row: int) -> Tensor:
        return nn.functional.nll_loss(log_q, target, reduction="sum")

    full = on != "adapter"
    policy, lr = (tiny(), 0.02) if full else (adapted(), 0.1)
    untrained = weights_of(policy, on)
    by_hand(policy, nll, lr=lr)
    before, scores = weights_of(policy, on), naive(policy, on)
    one: Any = trainer(
        tmp_path,
        defence=Antidote(0.25, on),
        harmful=HARMFUL,
        full=full,
        args={
            **ORDER,
            "learning_rate": lr,
            "per_device_train_batch_size": 4 // accumulate,
            "gradient_accumulation_steps": accumulate,
        },
    )
    one.train()
    after = weights_of(one.model, on)
    assert_pruned(before, after, scores, 0.25, apart=SAME, blur=0.01)
    with pytest.raises(AssertionError):
        assert_pruned(untrained, after, scores, 0.25, apart=SAME, blur=0.01)


def test_a_resumed_run_ends_at_the_same_place(tmp_path: Path) -> None:
    def make(folder: str) -> Any:
        args = {"save_strategy": "steps", "save_steps": 2, "learning_rate": 0.05}
        return trainer(tmp_path / folder, defence=Antidote(), harmful=HARMFUL, args=args)

    whole = make("whole")
    whole.train()
    checkpoint = tmp_path / "whole/out/checkpoint-4"
    saved = load_file(checkpoint / "adapter_model.safetensors")
    assert all(bool(one.all()) for one in saved.values()), "nothing is pruned on the way"
    resumed = make("resumed")
    resumed.train(resume_from_checkpoint=str(checkpoint))
    wanted = weights_of(whole.model, "adapter")
    assert distance(weights_of(resumed.model, "adapter"), wanted) < SAME
    assert not all(bool(one.all()) for one in wanted.values())


# What is left behind


def hooks(model: nn.Module) -> int:
    return sum(len(one._forward_hooks) + len(one._forward_pre_hooks) for one in model.modules())


def modes(model: nn.Module) -> list[bool]:
    return [one.training for one in model.modules()]


@pytest.mark.parametrize("on", ON)
def test_nothing_else_changes(on: Any) -> None:
    policy, other = policy_of(on, lora_dropout=0.1), tiny()
    policy.train()
    list(policy.modules())[-1].eval()
    before, strangers = states(policy), states(other)
    n_hooks, as_it_was = hooks(policy), modes(policy)
    Antidote(on=on).after(policy, given_to(policy))
    assert hooks(policy) == n_hooks and modes(policy) == as_it_was
    assert equal(states(other), strangers)
    changed = {name for name, one in states(policy).items() if not torch.equal(one, before[name])}
    assert changed == {f"{name}.weight" for name in maps_of(policy, on)}
    assert all(one.grad is None for one in policy.parameters())


def test_an_error_on_the_way_leaves_nothing_behind() -> None:
    policy = policy_of("adapter").train()
    last = policy.get_base_model().model.layers[-1]
    before = states(policy)

    def fail(*_: object) -> None:
        raise ValueError("out of memory")

    handle = last.register_forward_hook(fail)
    n_hooks, as_it_was = hooks(policy), modes(policy)
    with pytest.raises(ValueError, match="out of memory"):
        Antidote().after(policy, given_to(policy))
    assert hooks(policy) == n_hooks and modes(policy) == as_it_was
    assert equal(states(policy), before)
    handle.remove()
    Antidote().after(policy, given_to(policy))
    assert not equal(states(policy), before)


def test_inputs_are_not_kept() -> None:
    """The pass holds as many numbers as a map has columns, however many rows there are."""
    policy = policy_of("adapter")
    seen: list[weakref.ref[Tensor]] = []
    maps = list(maps_of(policy, "adapter").values())

    def watch(_: object, args: tuple[Tensor, ...]) -> None:
        seen.append(weakref.ref(args[0]))
        assert sum(one() is not None for one in seen) <= 4

    maps[0].register_forward_pre_hook(watch)
    input_norms(policy, maps, encoded(ROWS_OF_HARM), token_budget=1)
    assert len(seen) == len(ROWS_OF_HARM)


# What is refused, and when


@pytest.mark.parametrize("ratio", [-0.1, 1.1, float("nan")])
def test_a_ratio_that_means_nothing_is_refused(ratio: float) -> None:
    with pytest.raises(InputError, match=f"--defence.dense-ratio {ratio}: must lie between"):
        Antidote(ratio).check()
    Antidote().check()


def test_without_harmful_data_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give --harmful"):
        check_given(Antidote(), {"safe": HARMFUL})
    with pytest.raises(InputError, match="give --harmful"):
        trainer(tmp_path, defence=Antidote())


@pytest.mark.parametrize(
    ("on", "options", "message"),
    [
        ("adapter", {"full": True}, "--defence.on adapter .* give --defence.on attention"),
        ("adapter", {"peft_config": lora(use_dora=True)}, "plain LoRA on linear maps"),
        (
            "adapter",
            {"peft_config": lora(target_modules=["embed_tokens", "q_proj"])},
            "plain LoRA on linear maps",
        ),
        ("adapter", {"peft_config": IA3Config(task_type="CAUSAL_LM")}, "the policy has none"),
        ("attention", {}, "--defence.on attention .*--full.* give --defence.on adapter"),
        ("linear", {}, "--defence.on linear .*--full.* give --defence.on adapter"),
    ],
)
def test_what_cannot_be_pruned_is_refused_before_training(
    on: Any, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        trainer(tmp_path, defence=Antidote(on=on), harmful=HARMFUL, **options)


def test_a_harmful_row_that_cannot_be_read_is_refused_before_training(tmp_path: Path) -> None:
    rows = [*HARMFUL, *examples([{"prompt": "long" * 200, "completion": "yes"}])]
    with pytest.raises(InputError, match=r"row 0: the prompt takes 8\d\d tokens"):
        trainer(tmp_path, defence=Antidote(), harmful=rows)


def test_maps_of_other_names_are_refused() -> None:
    model: Any = tiny()
    for block in model.model.layers:
        block.self_attn = nn.Identity()
    with pytest.raises(InputError, match="no such linear maps"):
        Antidote(on="attention").maps(model)
    assert Antidote(on="linear").maps(model)
