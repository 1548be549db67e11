"""Every case of every bench is built, runs and agrees, at tiny shapes; what is wrong does not."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.benchmarks import capture, fit, gpu, measure, memory, pipeline, step
from tests.benchmarks.cases import Group, Mismatch, difference
from tests.benchmarks.workloads import Shape, batches, chats, twins

TINY = Shape(d_model=32, d_mlp=48, n_layers=3, heads=4, kv_heads=4, vocabulary=300)
PROMPTS = {
    "5 prompts of 600 to 1000 tokens": chats(3, 60, 100),
    "24 prompts, few-shot header of 200 tokens": chats(5, 52, 70, shared=50),
    "24 pairs of twins": twins(3),
}
WORKLOADS = [
    work._replace(
        shape=TINY._replace(
            family=work.shape.family,
            kv_heads=2 if work.shape.kv_heads < work.shape.heads else 4,
        ),
        prompts=PROMPTS.get(work.name, chats(7, 30, 60)),
        read=2 if work.read else None,
        batch=3,
    )
    for work in capture.WORKLOADS
]


def agrees(group: Group) -> dict[str, float]:
    """Parity of each row of a group, none of which may fail."""
    found = measure.rows(group, [b.name for b in group.baselines], rounds=1)
    assert [row.failed for row in found] == [""] * len(group.baselines)
    return {row.baseline: row.parity for row in found}


@pytest.mark.parametrize("work", WORKLOADS, ids=lambda work: work.name)
def test_captures_agree_with_every_baseline(work: capture.Workload) -> None:
    pytest.importorskip("transformer_lens")
    pytest.importorskip("nnsight")
    assert max(agrees(work.group()).values()) < 1e-5


def test_a_capture_of_another_token_layer_or_order_is_found_out() -> None:
    work = WORKLOADS[0]
    built = work.build()
    right = capture.ours(built)()
    earlier = built._replace(prompts=[ids[:-1] for ids in built.prompts])
    wrong = {
        "token": capture.ours(earlier)(),
        "layer": right.roll(1, dims=1),
        "order": right.roll(1, dims=0),
    }
    theirs = capture.SORTED.make(built._replace(layers=range(2))).job()
    difference(right[:, :2], theirs, 1e-4)
    for found in wrong.values():
        with pytest.raises(Mismatch):
            difference(found[:, :2], theirs, 1e-4)


def test_transformers_last_hidden_state_is_another_thing() -> None:
    """What makes `alike` needed: without the final norm ours differs."""
    built = WORKLOADS[0].build()
    against = capture.SORTED.make(built)
    difference(against.alike(), against.job(), 1e-4)
    with pytest.raises(Mismatch):
        difference(capture.ours(built)(), against.job(), 1e-4)


def test_prompts_share_what_they_say_and_no_more() -> None:
    def common(a, b):
        return next(i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)

    many = chats(20)(32_000)
    assert {len(ids) for ids in many} <= set(range(40, 141))
    assert all(common(many[0], ids) == 25 for ids in many[1:])
    pairs = twins(10)(32_000)
    for a, b in zip(pairs[::2], pairs[1::2], strict=True):
        assert len(a) == len(b)
        assert common(a, b) == 25 + (len(a) - 25) * 2 // 3
        assert common(a, pairs[0]) == 25 if a is not pairs[0] else True


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("by_length", [False, True])
def test_batches_hold_every_prompt_once(left: bool, by_length: bool) -> None:
    prompts = chats(10, 30, 60)(300)
    found = {}
    for batch in batches(prompts, size=4, by_length=by_length, left=left):
        for row, i in enumerate(batch.chosen):
            found[i] = tuple(batch.ids[row][batch.mask[row].bool()].tolist())
            assert batch.ids[row, batch.last[row]] == prompts[i][-1]
    assert found == dict(enumerate(prompts))


def test_the_way_to_a_cache_on_disk_keeps_what_the_capture_reads() -> None:
    small = pipeline.group(shape=TINY._replace(vocabulary=2000), n=5)
    assert agrees(small) == {"the capture alone": 0.0}
    built = small.build()
    assert len(built.file.read_text().splitlines()) == 5


def test_the_fits_agree(monkeypatch) -> None:
    """With scikit-learn's, the shuffled ones too; and other shuffles are other fits."""
    monkeypatch.setattr(fit, "N", 200)
    monkeypatch.setattr(fit, "PERMUTATIONS", 4)
    for one in (fit.one(20), fit.shuffled(20)):
        assert max(agrees(one).values()) < 1e-3
    data = fit.Data(20)
    shuffled = fit.shuffled(20)
    others = data.theirs(data.shuffled[:, 2:])
    with pytest.raises(Mismatch):
        difference(shuffled.ours(data)(), others, shuffled.tolerance)


def test_the_steps_agree_and_again_after_a_step() -> None:
    """With the textbook's gradient, and without a KL with transformers' own."""
    size = step.Size(TINY._replace(vocabulary=3000, tied=True), examples=4, length=20)
    one = step.group(size)
    assert len(one.baselines) == 4
    built = one.build()
    ours = one.ours(built)
    for baseline in one.baselines:
        against = baseline.make(built)
        for _ in range(2):
            mine = ours() if against.alike is None else against.alike()
            theirs = against.job()
            difference(mine, theirs, one.tolerance)
            if against.alike is not None:  # with a KL it is another gradient
                with pytest.raises(Mismatch):
                    difference(ours(), theirs, 0.01)


SMALL = gpu.Scale(TINY._replace(vocabulary=3000), 2, 24, 6, 3, 64, "cpu", torch.float32)


def test_what_a_gpu_is_to_measure_runs_on_a_cpu() -> None:
    groups = gpu.groups(SMALL)
    assert {one.device for one in gpu.groups()} == {"cuda"}
    assert [b.name for one in groups for b in one.baselines] == [
        b.name for one in gpu.groups() for b in one.baselines
    ]
    for one in groups:
        for name, parity in agrees(one).items():
            assert parity < 1e-5 or name == "the card's matrix products"
    goals = [b.goal for one in groups for b in one.baselines if not np.isnan(b.goal)]
    assert goals == [0.6, 0.95]


def test_a_shared_model_is_one_and_gives_the_same_gradients() -> None:
    """A second copy of 16 GB is not made on a GPU."""
    size = step.Size(TINY._replace(vocabulary=300), 2, 24)
    apart, shared = step.build(size), step.build(size._replace(shared=True))
    assert shared.model is shared.plain is shared.base
    assert apart.model is not apart.plain
    for baseline in (step.SFT, step.TEXTBOOK_OFF, step.OFF):
        difference(baseline.make(shared).job(), baseline.make(apart).job(), 1e-5)


def test_flops_are_what_torch_counts_but_for_the_causal_half() -> None:
    model = TINY.model()
    model.set_attn_implementation("eager")  # products that the counter sees
    prompts = chats(3, 30, 40)(300)
    body = model.get_decoder()
    counted = 0
    for ids in prompts:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            body(torch.tensor([ids]), use_cache=False)
        counted += counter.get_total_flops()
    squares = sum(len(ids) ** 2 for ids in prompts)
    other_half = 2 * 3 * 32 * squares
    assert gpu.flops(model, prompts) + other_half == pytest.approx(counted, rel=1e-3)


def test_a_peak_is_that_of_the_named_job_in_a_process_of_its_own(monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(memory.memory, "alone", lambda f, *args: asked.append((f, args)) or 7)
    assert memory.peak("fit", 0, "ours") == 7
    assert asked == [(memory._peak, ("fit", 0, "ours"))]
    monkeypatch.setattr(fit, "N", 200)
    monkeypatch.setattr(memory.memory, "peak", lambda job: job)
    name = "scikit-learn, warm path"
    monkeypatch.setattr(fit, "groups", lambda: (fit.one(8),))
    ours, theirs = memory._peak("fit", 0, "ours"), memory._peak("fit", 0, name)
    assert np.abs(ours() - theirs()).max() < 1e-3
    with pytest.raises(ValueError, match="not enough values"):
        memory._peak("fit", 0, "no such baseline")
