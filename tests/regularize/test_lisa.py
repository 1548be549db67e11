"""Lisa (arXiv 2405.18641): the paper's two states with an anchor each, by hand; plain SGD."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from probes.errors import InputError
from regularize import packed
from regularize.data import IGNORE, examples
from regularize.defences import Given, Steps, Turn
from regularize.defences.lisa import Lisa
from regularize.defences.none import SFT
from regularize.trainer import STEPS as STATE
from regularize.trainer import RegularizedTrainer
from regularize.turns import Turns
from tests.regularize.training import (
    ORDER,
    OTHER,
    ROWS,
    SAFE_ROWS,
    adapted,
    distance,
    encoded,
    equal,
    run,
    states,
    tiny,
    trained,
    trainer,
)

SAFE = examples(SAFE_ROWS)
ALL_ROWS = [*ROWS, *SAFE_ROWS]
LISA = Lisa(rho=2.0, k1=2, k2=3)
N, BATCH, LR = 8, 4, 0.1
"""Steps, rows in each, and how far each goes."""
EXACT = 1e-9
"""What float64's rounding stays below."""
PARTS = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}


@pytest.fixture(autouse=True)
def padded(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the printed loop: in a packed row norms, always in float32, round otherwise."""
    monkeypatch.setattr(packed, "limit", lambda *_: 0)


def acts(lisa: Lisa, policy: nn.Module) -> Steps:
    return lisa.steps(policy, cast(Given, None))


def turn(lisa: Lisa, step: int) -> Turn:
    """Counted out."""
    return [*["safe"] * lisa.k1, *["user"] * lisa.k2][step % (lisa.k1 + lisa.k2)]  # type: ignore


class Anchors:
    """The paper's two: the last weights of either state; `swapped`: as the README prints them."""

    def __init__(self, lisa: Lisa, start: Iterable[Tensor], *, swapped: bool = False) -> None:
        self.lisa, self.swapped = lisa, swapped
        first = [p.detach().clone() for p in start]
        self.last = {"safe": first, "user": first}

    def of(self, step: int) -> list[Tensor]:
        own = turn(self.lisa, step)
        other = {"safe": "user", "user": "safe"}[own]
        return self.last[own if self.swapped else other]

    def ended(self, step: int, weights: Iterable[Tensor]) -> None:
        self.last[turn(self.lisa, step)] = [p.detach().clone() for p in weights]


# The proximal term


class Few(nn.Module):
    """Two matrices that are trained, and one that is not."""

    def __init__(self, seed: int, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        make = torch.Generator().manual_seed(seed)
        for name, size in {"a": (3, 4), "b": (5,), "frozen": (2, 2)}.items():
            values = torch.randn(size, generator=make, dtype=torch.float64).to(dtype)
            self.register_parameter(name, nn.Parameter(values, requires_grad=name != "frozen"))

    @property
    def both(self) -> list[Tensor]:
        return [p for p in self.parameters() if p.requires_grad]

    def move(self, make: torch.Generator) -> None:
        with torch.no_grad():
            for p in self.both:
                p += torch.randn(p.shape, generator=make, dtype=torch.float64).to(p.dtype)


LISAS = st.builds(
    Lisa,
    rho=st.floats(0.01, 100),
    k1=st.integers(0, 4),
    k2=st.integers(1, 4),
    free=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
)


@settings(deadline=None)
@given(lisa=LISAS, steps=st.integers(8, 24), seed=st.integers(0, 2**16))
def test_the_term_is_the_printed_one(lisa: Lisa, steps: int, seed: int) -> None:
    lisa.check()
    policy, make = Few(seed), torch.Generator().manual_seed(seed)
    ours, paper = acts(lisa, policy), Anchors(lisa, policy.both)
    for step in range(steps):
        assert ours.turn(step) == turn(lisa, step)
        ours.begin(step, steps)
        # As in the midst of a step: neither where it began nor where it ends.
        policy.move(make)
        found, anchors = ours.penalty(), paper.of(step)
        assert (found is not None) == (step > lisa.free * steps)
        if found is not None:
            differences = [p - a for p, a in zip(policy.both, anchors, strict=True)]
            wanted = lisa.rho / 2 * sum(float((d.detach() ** 2).sum()) for d in differences)
            assert float(found.detach()) == pytest.approx(wanted, rel=1e-12)
            for slope, d in zip(torch.autograd.grad(found, policy.both), differences, strict=True):
                torch.testing.assert_close(slope, lisa.rho * d)
        paper.ended(step, policy.both)


@torch.no_grad()
def test_the_term_is_another_with_the_anchors_swapped() -> None:
    """The control: the README's."""
    lisa, policy, make = Lisa(1.0, 2, 3, 0.0), Few(0), torch.Generator().manual_seed(0)
    ours, readme = acts(lisa, policy), Anchors(lisa, policy.both, swapped=True)
    apart = []
    for step in range(10):
        ours.begin(step, 10)
        policy.move(make)
        found, anchors = ours.penalty(), readme.of(step)
        wanted = sum(float(((p - a) ** 2).sum()) for p, a in zip(policy.both, anchors, strict=True))
        apart.append(found is not None and abs(float(found) - wanted / 2) > 0.1)
        readme.ended(step, policy.both)
    assert sum(apart) >= 7


@settings(deadline=None)
@given(
    rho=st.floats(0.1, 1e6),
    rate=st.floats(0.01, 1.0),
    k2=st.integers(1, 60),
    seed=st.integers(0, 2**16),
)
def test_a_state_goes_to_its_proximal_point(rho: float, rate: float, k2: int, seed: int) -> None:
    """With <g, w> as the loss: w - w_0 = -(g / rho) (1 - (1 - lr rho)^t), by gradient descent.

    The larger rho, the nearer: at infinity the weights stay where they were.
    """
    policy, slope = Few(seed), 0.7
    ours = acts(Lisa(rho=rho, k1=0, k2=k2, free=0.0), policy)
    start = [p.detach().clone() for p in policy.both]
    sgd = torch.optim.SGD(policy.both, lr=rate / rho)
    for step in range(k2):
        ours.begin(step, k2)
        loss = slope * torch.stack([p.sum() for p in policy.both]).sum()
        penalty = ours.penalty()
        sgd.zero_grad()
        (loss if penalty is None else loss + penalty).backward()
        sgd.step()
    for p, p_0 in zip(policy.both, start, strict=True):
        wanted = p_0 - slope / rho * (1 - (1 - rate) ** k2)
        torch.testing.assert_close(p.detach(), wanted, rtol=1e-9, atol=1e-9)


def test_each_term_has_a_graph_of_its_own() -> None:
    policy = Few(0)
    ours = acts(Lisa(1.0, 0, 1, 0.0), policy)
    ours.begin(0, 9)
    policy.move(torch.Generator().manual_seed(0))
    ours.begin(1, 9)
    terms = [ours.penalty(), ours.penalty()]
    for term in terms:
        assert term is not None
        (term / 2).backward()
    once = torch.autograd.grad(cast(Tensor, ours.penalty()), policy.both)
    for p, slope in zip(policy.both, once, strict=True):
        torch.testing.assert_close(p.grad, slope)
    assert policy.frozen.grad is None


def test_bfloat16_weights_are_summed_in_float32() -> None:
    found = {}
    for dtype in (torch.bfloat16, torch.float64):
        policy = Few(1, dtype)
        ours = acts(Lisa(1.0, 0, 1, 0.0), policy)
        ours.begin(0, 9)
        with torch.no_grad():
            for p in policy.both:
                p *= 1.5
        ours.begin(1, 9)
        found[dtype] = ours.penalty()
    low, high = found[torch.bfloat16], found[torch.float64]
    assert low is not None and high is not None and low.dtype == torch.float32
    assert float(low.detach()) == pytest.approx(float(high.detach()), rel=0.02)


# Training


def order(*, steps: int = N, lisa: Lisa = LISA) -> list[list[int]]:
    """The rows of each step, over the epochs; `test_turns` looks at what they are."""
    found: list[list[int]] = []

    def of_step(step: int) -> Turn:
        return turn(lisa, step)

    turns = Turns(
        len(ROWS),
        len(SAFE),
        rows=len(ROWS),
        step=BATCH,
        turn=of_step,
        done=lambda: len(found),
        seed=3,
    )
    while len(found) < steps:
        rows = list(turns)
        found += [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
    return found[:steps]


def by_hand(
    model: nn.Module,
    chosen: Sequence[Sequence[int]],
    lisa: Lisa | None,
    *,
    lr: float = LR,
    swapped: bool = False,
) -> dict[str, Tensor]:
    """Row by row, full logits, SGD by hand; rho (w - anchor) is added to the gradient."""
    rows = encoded(ALL_ROWS)
    parameters = [p for p in model.parameters() if p.requires_grad]
    anchors = None if lisa is None else Anchors(lisa, parameters, swapped=swapped)
    for step, numbers in enumerate(chosen):
        total, n_tokens = torch.zeros((), dtype=parameters[0].dtype), 0
        for i in numbers:
            ids, labels = torch.tensor(rows[i].input_ids), torch.tensor(rows[i].labels)
            total = total + nn.functional.cross_entropy(
                model(input_ids=ids[None]).logits[0, :-1],
                labels[1:],
                ignore_index=IGNORE,
                reduction="sum",
            )
            n_tokens += int((labels[1:] != IGNORE).sum())
        gradients = list(torch.autograd.grad(total / n_tokens, parameters))
        if lisa is not None and anchors is not None and step > lisa.free * len(chosen):
            pairs = zip(gradients, parameters, anchors.of(step), strict=True)
            gradients = [g + lisa.rho * (p.detach() - a) for g, p, a in pairs]
        with torch.no_grad():
            for p, g in zip(parameters, gradients, strict=True):
                p -= lr * g
        if anchors is not None:
            anchors.ended(step, parameters)
    return trained(model)


def taught(folder: Path, lisa: Lisa = LISA, **options: Any) -> dict[str, Tensor]:
    args = {"max_steps": N, "learning_rate": LR, **options.pop("args", {})}
    return run(folder, defence=lisa, safe=SAFE, args=args, **options)


@pytest.mark.parametrize("family", ["llama", "phi3", "qwen2"])
def test_training_goes_the_printed_way(tmp_path: Path, family: str) -> None:
    ours = taught(tmp_path, model=tiny(family).double())
    assert distance(ours, by_hand(adapted(tiny(family).double()), order(), LISA)) < EXACT


def test_training_without_the_term_goes_another_way(tmp_path: Path) -> None:
    """The controls; and with the README's anchors yet another."""
    ours = taught(tmp_path)
    for lisa, swapped in ((None, False), (LISA, True)):
        assert distance(ours, by_hand(adapted(), order(), lisa, swapped=swapped)) > OTHER


def test_training_all_weights_goes_the_printed_way(tmp_path: Path) -> None:
    lr = 0.02
    ours = taught(tmp_path, model=tiny().double(), full=True, args={"learning_rate": lr})
    assert distance(ours, by_hand(tiny().double(), order(), LISA, lr=lr)) < EXACT
    assert distance(ours, by_hand(tiny().double(), order(), None, lr=lr)) > OTHER


def test_accumulation_changes_nothing(tmp_path: Path) -> None:
    """With a last step of an epoch that has fewer micro-batches."""
    found = [
        taught(tmp_path / str(i), model=tiny().double(), rows=ROWS[:10], args=parts)
        for i, parts in enumerate(({}, PARTS))
    ]
    assert distance(*found) < EXACT


def test_without_states_and_term_it_is_plain_fine_tuning(tmp_path: Path) -> None:
    """Bit by bit, over the same rows in the same order."""
    plain = Lisa(rho=0, k1=0, k2=1)
    found = taught(tmp_path / "lisa", plain, args={"max_steps": 3})
    rows = [ROWS[i] for step in order(steps=3, lisa=plain) for i in step]
    assert sorted(row["messages"][0]["content"] for row in rows) == sorted(
        row["messages"][0]["content"] for row in ROWS
    )
    sft = {"max_steps": 3, "learning_rate": LR, **ORDER}
    assert equal(found, run(tmp_path / "sft", rows=rows, defence=SFT(), args=sft))
    for i, other in enumerate((Lisa(rho=2, k1=0, k2=1), Lisa(rho=0, k1=1, k2=1))):
        assert not equal(found, taught(tmp_path / str(i), other, args={"max_steps": 3}))


def test_a_large_rho_keeps_the_weights(tmp_path: Path) -> None:
    """Adam's steps are of one length whatever the loss: back and forth about the start."""
    start, lr = trained(adapted()), 1e-3
    args = {"learning_rate": lr, "optim": "adamw_torch"}
    loose, held = (
        distance(taught(tmp_path / str(rho), Lisa(rho, 1, N - 1, 0.0), args=args), start)
        for rho in (0.0, 1e6)
    )
    assert held < 2.5 * lr < 5 * lr < loose


def test_adam_and_the_schedule_go_on_across_states(tmp_path: Path) -> None:
    args = {"max_steps": N, "optim": "adamw_torch", "lr_scheduler_type": "linear"}
    logged = []
    for i, defence in enumerate((LISA, SFT())):
        one = trainer(tmp_path / str(i), defence=defence, safe=SAFE, args=args)
        one.train()
        logged.append([entry["learning_rate"] for entry in one.state.log_history[:N]])
        assert one.optimizer is not None
        assert {int(state["step"]) for state in one.optimizer.state.values()} == {N}
    assert logged[0] == logged[1] and len(set(logged[0])) == N


# Going on


def resumable(folder: Path, *, full: bool = False) -> RegularizedTrainer:
    """Shuffled rows, dropout, Adam's moments and a falling learning rate."""
    torch.manual_seed(0)
    return trainer(
        folder,
        model=tiny(dropout=0.1),
        full=full,
        defence=LISA,
        safe=SAFE,
        args={
            **PARTS,
            "max_steps": N + 1,
            "save_strategy": "steps",
            "save_steps": 2,
            "optim": "adamw_torch",
            "learning_rate": 1e-2,
            "lr_scheduler_type": "linear",
        },
    )


def resumed(folder: Path, checkpoint: Path, *, full: bool = False) -> dict[str, Tensor]:
    one = resumable(folder, full=full)
    one.train(resume_from_checkpoint=str(checkpoint))
    assert one.state.global_step == N + 1
    return trained(one.model)


@pytest.mark.parametrize("full", [False, True], ids=["adapter", "full"])
def test_resumed_it_is_on_the_same_way(tmp_path: Path, full: bool) -> None:
    one = resumable(tmp_path, full=full)
    one.train()
    wanted = trained(one.model)
    # The first at a switch, the others in the midst of the user's and the alignment's state.
    checkpoints = {n: tmp_path / "out" / f"checkpoint-{n}" for n in (2, 4, 6)}
    for checkpoint in checkpoints.values():
        kept = load_file(checkpoint / STATE)
        assert {name: p.shape for name, p in kept.items()} == {
            name: p.shape for name, p in wanted.items()
        }
        assert distance(resumed(tmp_path / "again", checkpoint, full=full), wanted) < 1e-7

    # The controls: an anchor that is not its own, and none.
    save_file(load_file(checkpoints[2] / STATE), checkpoints[4] / STATE)
    assert distance(resumed(tmp_path / "other", checkpoints[4], full=full), wanted) > 1e-4
    (checkpoints[4] / STATE).unlink()
    with pytest.raises(InputError, match="the checkpoint has no anchor"):
        resumed(tmp_path / "none", checkpoints[4], full=full)


# What it leaves alone, and what it refuses


def test_what_is_not_trained_is_left_alone(tmp_path: Path) -> None:
    other, model = tiny(), tiny()
    before, own = states(other), states(model)
    frozen = {name.replace(".base_layer", ""): p for name, p in own.items()}
    one = trainer(tmp_path, model=model, defence=LISA, safe=SAFE, args={"max_steps": 6})
    one.train()
    assert equal(states(other), before)
    after = {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): p
        for name, p in states(one.model).items()  # type: ignore[arg-type]
        if "lora_" not in name
    }
    assert equal(after, frozen)


@pytest.mark.parametrize("full", [False, True], ids=["adapter", "full"])
def test_bfloat16_weights_are_trained(tmp_path: Path, full: bool) -> None:
    model = tiny().to(torch.bfloat16)
    start = states(model)
    found = taught(tmp_path, Lisa(1.0, 1, 1), model=model, full=full, args={"max_steps": 4})
    assert all(bool(p.isfinite().all()) for p in found.values())
    if full:
        assert all(p.dtype == torch.bfloat16 for p in found.values())
        assert not equal(states(model), start)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rho": -1.0}, "--defence.rho -1.0: must be finite and not negative"),
        ({"rho": float("inf")}, "--defence.rho inf: must be finite"),
        ({"rho": float("nan")}, "--defence.rho nan: must be finite"),
        ({"k1": -1}, "--defence.k1 -1: must not be negative"),
        ({"k2": 0}, "--defence.k2 0: must be at least 1"),
        ({"free": 1.5}, "--defence.free 1.5: must lie between 0 and 1"),
    ],
)
def test_what_means_nothing_is_refused(options: Mapping[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        Lisa(**options).check()
    Lisa().check()
    Lisa(rho=0, k1=0, k2=1, free=0).check()


def test_without_safe_data_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Lisa needs safe data .* give --safe"):
        trainer(tmp_path, defence=Lisa())


@given(k1=st.integers(1, 1000), k2=st.integers(1, 1000), steps=st.integers(2, 2000))
def test_less_than_a_round_is_refused_and_another_proposed(k1: int, k2: int, steps: int) -> None:
    policy = Few(0)
    if k1 + k2 <= steps:
        acts(Lisa(k1=k1, k2=k2), policy).begin(0, steps)
        return
    with pytest.raises(InputError, match="less than one round of both") as error:
        acts(Lisa(k1=k1, k2=k2), policy).begin(0, steps)
    proposed = re.search(r"; --defence.k1 (\d+) --defence.k2 (\d+) makes (\d+)", str(error.value))
    assert proposed is not None
    few, many, rounds = map(int, proposed.groups())
    other = Lisa(k1=few, k2=many)
    other.check()
    acts(other, policy).begin(0, steps)
    assert rounds == steps // (few + many) >= 1


def test_a_short_training_with_the_defaults_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"k1 1 --defence.k2 9 makes 15 rounds"):
        taught(tmp_path, Lisa(), args={"max_steps": 152})
