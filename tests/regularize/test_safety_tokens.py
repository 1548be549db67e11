"""Safety token regularization (arXiv 2604.17210): the printed loss by autograd, in fp64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import tyro
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from probes import models
from probes.errors import InputError
from probes.models import ChatModel
from regularize import anchors, data
from regularize.data import IGNORE, Example
from regularize.defences import At, Given, check_given
from regularize.defences.none import SFT
from regularize.defences.safety_tokens import SafetyTokens, Salient
from regularize.losses import Head, moments, regularized
from regularize.passes import constants
from regularize.train import TrainConfig
from tests.conftest import make_tokenizer
from tests.regularize.training import (
    ORDER,
    OTHER,
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
    trained,
    trainer,
)

VOCAB, WIDTH = 23, 7
S = (3, 17, 8)
HELD = ("logit", "log-probability")
TOKENS = (12, 40, 77)
"""Of the tiny models' vocabulary."""


def strong(held: Any = "logit", **options: Any) -> SafetyTokens:
    """Felt in a few steps."""
    return SafetyTokens(**{"lam": 0.3, "tokens": TOKENS, "held": held, **options})


# The loss


def printed(z: Tensor, z_ref: Tensor, defence: SafetyTokens, places: Tensor) -> Tensor:
    """lambda mean_{v in S} |..|^p, of each token [token], from whole logits [token, vocab]."""
    if defence.held == "log-probability":
        z, z_ref = z.log_softmax(-1), z_ref.log_softmax(-1)
    found = []
    for t, place in enumerate(places.tolist()):
        total = z.new_zeros(())
        for v in defence.tokens:
            moved = z[t, v] - z_ref[t, v]
            total = total + (moved**2 if defence.norm == "squared" else moved.abs())
        counts = defence.positions is None or place < defence.positions
        found.append(defence.lam * total / len(defence.tokens) * counts)
    return torch.stack(found)


def head_like(make: torch.Generator, *, bias: bool = True) -> Head:
    weight, b = (
        torch.randn(VOCAB, *size, generator=make, dtype=torch.float64) for size in ((WIDTH,), ())
    )
    return Head(weight, b if bias else None)


@settings(deadline=None, max_examples=60)
@given(
    answers=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    lam=st.floats(0.01, 5),
    held=st.sampled_from(HELD),
    norm=st.sampled_from(["squared", "absolute"]),
    positions=st.none() | st.integers(1, 7),
    bias=st.booleans(),
    trains_head=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_loss_and_gradient_are_those_of_the_printed_formula(
    answers: list[int],
    lam: float,
    held: Any,
    norm: Any,
    positions: int | None,
    bias: bool,
    trains_head: bool,
    seed: int,
) -> None:
    make = torch.Generator().manual_seed(seed)
    defence = SafetyTokens(lam=lam, tokens=S, held=held, norm=norm, positions=positions)
    n, frozen = sum(answers), head_like(make, bias=bias)
    head = Head(*[None if t is None else t + 0.1 * trains_head for t in frozen])
    now, before = torch.randn(2, n, WIDTH, generator=make, dtype=torch.float64)
    alpha = torch.rand(n, generator=make, dtype=torch.float64).round(decimals=1)
    target = torch.randint(VOCAB, (n,), generator=make)
    place = torch.cat([torch.arange(one) for one in answers])
    leaves = [now, *(t for t in head if t is not None and trains_head)]
    for leaf in leaves:
        leaf.requires_grad_()

    z, z_ref = torch.nn.functional.linear(now, *head), torch.nn.functional.linear(before, *frozen)
    nll = -z.log_softmax(-1).gather(1, target[:, None])[:, 0]
    wanted = (alpha * (nll + printed(z, z_ref, defence, place))).sum()

    known = defence.of_reference(before, frozen, target)
    terms = defence.loss(At(now, head, target, place, alpha, 0 * alpha, None, known))
    torch.testing.assert_close(terms.loss, wanted)
    torch.testing.assert_close(terms.nll, nll.detach())
    assert not terms.kl.any()
    for ours, theirs in zip(
        torch.autograd.grad(terms.loss, leaves), torch.autograd.grad(wanted, leaves), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_logits_that_stay_do_not_keep_their_probability() -> None:
    """The control: the two kinds of penalty differ, each in what it does not see."""
    make = torch.Generator().manual_seed(0)
    head = head_like(make)
    hidden = torch.randn(5, WIDTH, generator=make, dtype=torch.float64)
    target, place, one = torch.arange(5), torch.arange(5), torch.ones(5, dtype=torch.float64)
    raised = torch.full((VOCAB,), 2.0, dtype=torch.float64)
    others = raised.clone()
    others[list(S)] = 0

    def penalty(held: Any, by: Tensor) -> float:
        defence = SafetyTokens(lam=1.0, tokens=S, held=held)
        known = defence.of_reference(hidden, head, target)
        other = Head(head.weight, head.bias + by)
        terms = defence.loss(At(hidden, other, target, place, one, 0 * one, None, known))
        return float(terms.loss - terms.nll.sum())

    for held, by in (("logit", others), ("log-probability", raised)):
        assert abs(penalty(held, 0 * by)) < 1e-12
        assert abs(penalty(held, by)) < 1e-12
    for held, by in (("logit", raised), ("log-probability", others)):
        assert penalty(held, by) > 1


@pytest.mark.parametrize("held", HELD)
def test_an_anchor_is_pure_kl_and_evaluation_pure_nll(held: Any) -> None:
    make = torch.Generator().manual_seed(0)
    head = head_like(make)
    now, before = torch.randn(2, 6, WIDTH, generator=make, dtype=torch.float64)
    target, place, one = torch.arange(6), torch.arange(6), torch.ones(6, dtype=torch.float64)
    defence = SafetyTokens(lam=2.0, tokens=S, held=held)
    known, reference = defence.of_reference(before, head, target), moments(before, head)
    now.requires_grad_()

    def found(alpha: Tensor, beta: Tensor, constants: Tensor | None) -> tuple[Tensor, Tensor]:
        terms = defence.loss(At(now, head, target, place, alpha, beta, reference, constants))
        return terms.loss, torch.autograd.grad(terms.loss, now)[0]

    for alpha, beta, of_reference, same in (
        (0 * one, one, known, True),
        (one, 0 * one, None, True),
        (one, 0 * one, known, False),  # the control
    ):
        plain = regularized(now, head, target, alpha, beta, reference).loss
        slope = torch.autograd.grad(plain, now)[0]
        loss, ours = found(alpha, beta, of_reference)
        assert torch.equal(loss, plain) == torch.equal(ours, slope) == same


def test_its_constants_are_transformers_own() -> None:
    model, rows = tiny("qwen2"), encoded()
    for held in HELD:
        found = constants(model, rows, strong(held).of_reference, token_budget=64)
        assert len(found) == len(rows)
        for row, known in zip(rows, found, strict=True):
            ids, labels = torch.tensor(row.input_ids), torch.tensor(row.labels)
            z = model(input_ids=ids[None]).logits[0, :-1][labels[1:] != IGNORE]
            wanted = z if held == "logit" else z.log_softmax(-1)
            torch.testing.assert_close(
                known, wanted[:, list(TOKENS)].detach(), atol=1e-5, rtol=1e-5
            )


# Training


def naive_training(model: Any, defence: SafetyTokens) -> dict[str, Tensor]:
    """Two whole models and the printed loss, on the logits that their heads gave."""
    reference, rows = tiny(), encoded()

    def last(one: Any) -> Callable[[], Tensor]:
        kept: list[Tensor] = []
        one.get_output_embeddings().register_forward_hook(
            lambda module, inputs, output: kept.append(output)
        )
        return lambda: kept[-1][0, :-1]

    z, z_ref = last(model), last(reference)

    def loss(log_q: Tensor, _: Tensor, target: Tensor, i: int) -> Tensor:
        answer = torch.tensor(rows[i].labels)[1:] != IGNORE
        nll = -log_q.gather(1, target[:, None])[:, 0]
        places = torch.arange(len(target))
        return (nll + printed(z()[answer], z_ref()[answer].detach(), defence, places)).sum()

    return by_hand(model, loss, reference=reference)


@pytest.mark.parametrize("defence", [strong(), strong("log-probability", positions=2)])
def test_training_goes_the_printed_way(defence: SafetyTokens, tmp_path: Path) -> None:
    ours = run(tmp_path, defence=defence, args=ORDER)
    assert distance(ours, naive_training(adapted(), defence)) < SAME
    assert distance(ours, run(tmp_path, defence=SFT(), args=ORDER)) > OTHER


@pytest.mark.parametrize("held", HELD)
def test_accumulation_changes_nothing(held: Any, tmp_path: Path) -> None:
    parts = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, **ORDER}
    whole = run(tmp_path, defence=strong(held), args=ORDER)
    assert distance(run(tmp_path, defence=strong(held), args=parts), whole) < SAME


@pytest.mark.parametrize("held", HELD)
def test_with_lambda_at_zero_it_is_plain_fine_tuning(held: Any, tmp_path: Path) -> None:
    for full in (False, True):  # where the head is trained too
        args = {**ORDER, "learning_rate": 0.02, "max_steps": 3}
        none = run(tmp_path, defence=SFT(), full=full, args=args)
        assert equal(run(tmp_path, defence=strong(held, lam=0.0), full=full, args=args), none)
        assert distance(run(tmp_path, defence=strong(held), full=full, args=args), none) > 1e-5


def test_resumed_it_ends_at_the_same_place(tmp_path: Path) -> None:
    def make() -> Any:
        saving = {"save_strategy": "steps", "save_steps": 2, "optim": "adamw_torch"}
        return trainer(
            tmp_path,
            defence=strong("log-probability"),
            peft_config=lora(lora_dropout=0.2),
            args={**saving, "learning_rate": 1e-2},
        )

    one = make()
    one.train()
    other = make()
    other.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert distance(trained(other.model), trained(one.model)) < 1e-7


@pytest.mark.parametrize("held", HELD)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_works_for_the_families(family: str, dtype: Any, held: Any, tmp_path: Path) -> None:
    other = tiny(family).to(dtype)
    before = states(other)
    for full in (False, True):
        model = tiny(family).to(dtype)
        one = trainer(tmp_path, model=model, defence=strong(held), full=full, args={"max_steps": 2})
        one.train()
        logged = one.steps()
        assert all(torch.tensor(step["loss"]).isfinite() for step in logged)
        # At the first step the policy is the reference, so that nothing is added to the NLL.
        assert logged[0]["loss"] == pytest.approx(logged[0]["nll"], abs=1e-3)
        assert logged[1]["loss"] > logged[1]["nll"]
    assert equal(states(other), before)


# The tokens


def asked(harmful: int, harmless: int) -> tuple[Example, ...]:
    """Requests in the order of chance would do as well."""
    return tuple(
        Example(({"role": "user", "content": f"{label} {i}"},), "not looked at", "row", label)
        for label, n in ((1, harmful), (0, harmless))
        for i in range(n)
    )


def byte_chat(model: Any = None) -> ChatModel:
    return ChatModel("tiny", None, tiny() if model is None else model, make_tokenizer())


def speaking(monkeypatch: pytest.MonkeyPatch, says: Callable[[str], str]) -> None:
    """Instead of the tiny models, which babble."""

    def answered(chat: Any, prompts: Sequence[Any], **_: Any) -> list[Example]:
        return [Example(tuple(one), says(one[-1]["content"]), "an answer") for one in prompts]

    monkeypatch.setattr(anchors, "answered", answered)


WORDS = st.text("abcdef", min_size=1, max_size=9)


@settings(deadline=None, max_examples=30)
@given(
    refusals=st.lists(WORDS, min_size=1, max_size=8),
    others=st.lists(WORDS, min_size=1, max_size=8),
    k=st.integers(1, 6),
    frequent=st.floats(0.2, 1),
    rare=st.floats(0, 0.8),
)
def test_salient_are_the_tokens_of_refusals(
    refusals: list[str], others: list[str], k: int, frequent: float, rare: float
) -> None:
    says = {f"{label} {i}": word for label, words in ((1, refusals), (0, others))
            for i, word in enumerate(words)}  # fmt: skip
    wanted = {}
    for letter in "abcdef":  # a byte is a token
        by, of_others = (
            sum(letter in word[:k] for word in words) / len(words) for words in (refusals, others)
        )
        if by >= frequent and of_others <= rare:
            wanted[letter] = (by, of_others)
    defence = SafetyTokens(k=k, frequent=frequent, rare=rare)
    chat = byte_chat()
    with pytest.MonkeyPatch.context() as patch:
        speaking(patch, says.__getitem__)
        have = Given(chat, safe=asked(len(refusals), len(others)))
        if not wanted:
            with pytest.raises(InputError, match="no token is in"):
                defence.salient(have)
            return
        found = defence.salient(have)
    assert {chat.tokenizer.decode([one.token]): one[1:] for one in found} == wanted
    gains = [one.refused - one.done for one in found]
    assert gains == sorted(gains, reverse=True)


def test_a_model_is_asked_for_its_own_refusals(capsys: pytest.CaptureFixture[str]) -> None:
    """The shipped miniature, and a naive count over what it generates, one by one."""
    chat = models.load("miniature/llama")
    rows = data.load("miniature:safe", seed=0)
    few = [one for label in (1, 0) for one in [r for r in rows if r.label == label][:12]]
    kept, hooks = states(chat.model), len(chat.model.model._forward_hooks)
    defence = SafetyTokens(k=5)

    def naive(label: int) -> list[set[int]]:
        found = []
        for one in few:
            if one.label == label:
                ids = chat.tokenizer.apply_chat_template(
                    list(one.prompt), add_generation_prompt=True, return_tensors="pt",
                    return_dict=True,
                )  # fmt: skip
                made = chat.model.generate(**ids, max_new_tokens=5, do_sample=False)
                found.append(set(made[0, ids["input_ids"].shape[1] :].tolist()))
        return found

    refused, done = naive(1), naive(0)
    special = set(chat.tokenizer.all_special_ids)
    wanted = {
        token
        for token in set.union(*refused) - special
        if sum(token in one for one in refused) >= 0.2 * len(refused)
        and sum(token in one for one in done) <= 0.1 * len(done)
    }
    after = defence.before(Given(chat, safe=tuple(few)))
    assert set(after.tokens) == wanted and wanted
    said = capsys.readouterr()
    assert not said.out
    for token in wanted:
        share = sum(token in one for one in refused) / len(refused)
        assert f"{chat.tokenizer.decode([token])!r} {share:.2f} / " in said.err
    assert equal(states(chat.model), kept) and not chat.model.training
    assert len(chat.model.model._forward_hooks) == hooks

    # The control: what is said to be harmful decides.
    swapped = [data.Example(r.prompt, r.answer, r.where, 1 - r.label) for r in few]
    assert not set(after.tokens) & {
        one.token for one in defence.salient(Given(chat, safe=tuple(swapped)))
    }


def test_the_adapter_says_nothing() -> None:
    model = adapted()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    model.train()
    loose = SafetyTokens(frequent=0.1, rare=0.0)

    def found(one: Any) -> list[Salient]:
        return loose.salient(Given(byte_chat(one), safe=asked(6, 6)))

    wanted = found(tiny())
    assert found(model) == wanted and model.training
    assert found(model.merge_and_unload()) != wanted


def test_no_more_are_asked_than_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    questions: list[str] = []

    def says(question: str) -> str:
        questions.append(question)
        return "no" if question[0] == "1" else "yes"

    speaking(monkeypatch, says)
    chat = byte_chat()
    for seed in (0, 0, 1):
        SafetyTokens(asked=3).before(Given(chat, safe=asked(9, 2), seed=seed))
    assert len(questions) == 3 * 5 and questions[:5] == questions[5:10] != questions[10:]


def test_tokens_that_are_given_are_not_searched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    n, o = byte_chat().tokenizer("no", add_special_tokens=False)["input_ids"]
    defence = SafetyTokens(tokens=(40, "no", "on", 12))
    check_given(defence, {})
    one = trainer(tmp_path, defence=defence)
    assert one.defence == SafetyTokens(tokens=(40, n, o, 12))
    assert defence.tokens == (40, "no", "on", 12)
    assert "4 safety tokens: 'C', 'n', 'o'" in capsys.readouterr().err
    assert {part.shape[1] for part in one._constants} == {4}


def test_they_are_given_on_the_command_line() -> None:
    words = ["defence:safety-tokens", "--defence.tokens", "40", "no", " on", "--defence.lam", "1"]
    assert tyro.cli(TrainConfig, args=words).defence == SafetyTokens(1.0, (40, "no", " on"))


# What cannot be


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lam": -1.0}, "--defence.lam -1.0: must be"),
        ({"lam": float("nan")}, "--defence.lam nan"),
        ({"lam": float("inf")}, "--defence.lam inf"),
        ({"frequent": 1.5}, "--defence.frequent 1.5: must lie between"),
        ({"rare": -0.1}, "--defence.rare -0.1"),
        ({"rare": 0.5}, "--defence.rare 0.5 must be less than --defence.frequent 0.2"),
        ({"positions": 0}, "--defence.positions 0: must be at least 1"),
        ({"k": 0}, "--defence.k 0"),
        ({"asked": 0}, "--defence.asked 0"),
    ],
)
def test_what_means_nothing_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        SafetyTokens(**options).check()
    assert message in str(error.value)
    for fine in (SafetyTokens(), strong(positions=1), SafetyTokens(0.0)):
        fine.check()


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"SafetyTokens needs safe data .* give --safe"):
        trainer(tmp_path, defence=SafetyTokens())
    chat = byte_chat()
    for have, message in (
        (asked(3, 0), "--safe has no harmless requests"),
        (asked(0, 3), "--safe has no harmful requests"),
    ):
        with pytest.raises(InputError, match=message):
            SafetyTokens().before(Given(chat, safe=have))
    speaking(monkeypatch, lambda question: "all the same")
    with pytest.raises(InputError, match=r"nearest are: 'a' 1.00 / 1.00, .* Does it refuse at all"):
        SafetyTokens().before(Given(chat, safe=asked(3, 3)))
    speaking(monkeypatch, lambda question: "</s>")
    for tokens, named in (((999,), "999"), ((-1,), "-1"), (("",), "''")):
        with pytest.raises(InputError, match=f"--defence.tokens {named}: no token of tiny, which"):
            SafetyTokens(tokens=tokens).before(Given(chat))
