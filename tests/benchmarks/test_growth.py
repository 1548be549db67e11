"""Growth: the jobs do what they say, tables are merged, and nothing of it depends on a clock."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from rich.console import Console

from analysis import results
from analysis.exponents import exponent
from regularize.losses import Head, moments
from tests.analysis import synthetic
from tests.benchmarks import gpu, growth
from tests.benchmarks.growth import Job, Quantity

SIZES = (1, 2, 4, 8)


def nothing(size: int) -> Job:
    return Job(lambda: size)


def fake(bench: str = "capture", name: str = "prompts", **more) -> Quantity:
    options = {"sizes": SIZES, "build": nothing, "time": 1.0, "memory": 0.0} | more
    return Quantity(bench, name, *options.values())


def made(quantity: Quantity, time: float, memory: float) -> list:
    ratios = {size: np.array([0.9, 1.0, 1.1]) * size**time for size in quantity.sizes}
    peaks = {size: 5.0 * size**memory for size in quantity.sizes}
    return growth.rows(quantity, ratios, peaks, quantity.time, 3)


def test_the_exponents_of_made_up_times_are_found() -> None:
    for time, memory in ((1.0, 0.0), (2.0, 1.0)):
        found = made(fake(), time, memory)
        assert [row.size for row in found] == list(SIZES)
        for row in found:
            assert row.time_exponent == pytest.approx(time)
            assert row.memory_exponent == pytest.approx(memory)
            assert row.time_ratio_lo < row.time_ratio < row.time_ratio_hi
        assert found[2].time_ratio == pytest.approx(4.0**time)
        assert found[2].memory_mb == pytest.approx(5.0 * 4**memory)


def test_what_grows_faster_than_it_must_is_marked() -> None:
    frame = synthetic.frame([*made(fake(), 1.05, 0.0), *made(fake(name="layers"), 2.0, 1.0)])
    console = Console(width=150)
    with console.capture() as shown:
        console.print(growth.render(frame))
    good, bad = (
        next(line for line in shown.get().splitlines() if name in line)
        for name in ("prompts", "layers")
    )
    assert "1.05 [1.05, 1.05]" in good and "!" not in good
    assert bad.count("!") == 2


def test_the_times_are_those_of_the_smallest_of_the_same_round(monkeypatch) -> None:
    """A round that is slow as a whole changes no ratio."""
    rounds = np.array([1.0, 3.0, 1.0])
    monkeypatch.setattr(
        growth.interleave,
        "seconds",
        lambda jobs, rounds_=rounds, **_: {name: list(rounds_ * int(name) ** 1.5) for name in jobs},
    )
    work = fake(build=lambda size: Job(lambda: None, work=7.0 * size**2), time=math.nan)
    found = growth.measure(work, rounds=3, with_memory=False)
    assert found[0].time_exponent == pytest.approx(1.5)
    assert found[0].time_exponent_hi - found[0].time_exponent_lo < 1e-6
    assert found[0].time_expected == pytest.approx(2.0)  # that of the work
    assert all(row.time_ratio_lo == row.time_ratio_hi for row in found)
    assert all(math.isnan(row.memory_mb) and math.isnan(row.memory_exponent) for row in found)


def test_the_peak_is_given_without_the_output(monkeypatch) -> None:
    monkeypatch.setattr(growth.memory, "is_known", lambda: True)
    monkeypatch.setattr(
        growth.memory, "alone", lambda f, title: {size: (10 + size) * 2**20 for size in SIZES}
    )
    quantity = fake(build=lambda size: Job(lambda: None, output=size * 2**20))
    found = growth.measure(quantity, rounds=1, with_memory=True)
    assert [row.memory_mb for row in found] == [10.0] * len(SIZES)
    assert found[0].memory_exponent == 0.0


def test_a_quantity_is_measured_anew_and_the_others_stay(tmp_path, monkeypatch) -> None:
    every = (fake(), fake(name="layers"), fake("loss", "vocabulary"))
    monkeypatch.setattr(growth, "quantities", lambda: every)
    seen = []

    def measured(quantity: Quantity, **_):
        seen.append(quantity.title)
        if quantity.name == "layers":
            raise RuntimeError("no layers")
        return made(quantity, 1.0, 0.0)

    monkeypatch.setattr(growth, "measure", measured)
    assert growth.run(tmp_path, "vocabulary", 1, False, False) == []
    failed = growth.run(tmp_path, None, 1, False, True)  # resumed
    assert failed == ["FAILED capture against layers: RuntimeError: no layers"]
    assert seen == ["loss against vocabulary", "capture against prompts", "capture against layers"]
    rows = results.rows(tmp_path, "growth")
    assert [row.quantity for row in rows] == ["prompts"] * 4 + ["vocabulary"] * 4


@pytest.mark.parametrize("index", range(len(growth.quantities())))
def test_every_job_runs_at_small_sizes(index: int, monkeypatch) -> None:
    small = growth.SMALL._replace(d_model=64, d_mlp=64, n_layers=2, heads=1, kv_heads=1)
    monkeypatch.setattr(growth, "SMALL", small._replace(vocabulary=300))
    monkeypatch.setattr(growth, "PROMPTS", 3)
    monkeypatch.setattr(growth, "LENGTH", 8)
    monkeypatch.setattr(growth, "_fit", partial(growth._fit, **{"n": 100, "width": 8}))
    loss = {"n": 20, "vocabulary": 100}
    monkeypatch.setattr(growth, "_loss", partial(growth._loss, **loss))
    quantity = growth.quantities()[index]
    smallest = {"width": 64}.get(quantity.name, 4) if quantity.bench == "capture" else 30
    job, larger = quantity.build(smallest), quantity.build(2 * smallest)
    result, more = job.run(), larger.run()
    assert torch.as_tensor(result).isfinite().all() and torch.as_tensor(more).isfinite().all()
    if quantity.bench == "capture":
        nbytes = result.numel() * result.element_size()
        assert job.output == nbytes
        expected = {"prompts": 1.0, "layers": 1.0, "vocabulary": 0.0}.get(quantity.name)
        if expected is not None:
            assert larger.work == pytest.approx(job.work * 2**expected)
        else:
            assert larger.work > 1.9 * job.work


def test_the_losses_gradient_is_the_textbooks() -> None:
    """The job that is measured is the loss, not something like it."""
    found = growth._loss(n=6, vocabulary=50).run()
    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.randn, generator=generator)
    weight = draw(50, growth.WIDTH) / growth.WIDTH**0.5
    hidden, reference = draw(6, growth.WIDTH), draw(6, growth.WIDTH)
    target = torch.randint(50, (6,), generator=generator)
    beta = torch.rand(6, generator=generator)
    hidden.requires_grad_()
    log_q = torch.log_softmax(hidden @ weight.T, -1)
    log_p = torch.log_softmax(reference @ weight.T, -1)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1)
    nll = -log_q[torch.arange(6), target]
    ((1 - beta) * nll + beta * kl).sum().backward()
    torch.testing.assert_close(found, hidden.grad, rtol=1e-4, atol=1e-6)
    assert moments(reference, Head(weight)).mu.shape == hidden.shape


def test_the_work_at_the_sizes_measured_grows_as_it_is_known_to() -> None:
    """Layers and prompts by 1; the width by nearly 2, for attention's part grows by 1 alone."""
    must = {}
    for name, sizes in (("layers", (2, 4, 8)), ("width", (64, 128, 256)), ("length", (8, 16, 32))):
        keys = {"layers": "n_layers", "width": "d_model"}
        work = []
        for size in sizes:
            shape = growth.SMALL._replace(d_model=64, d_mlp=64, n_layers=1, heads=1, kv_heads=1)
            if name in keys:
                shape = shape._replace(**{keys[name]: size})
            length = size if name == "length" else 8
            work.append(gpu.flops(shape.model(), [tuple(range(length))] * 2))
        must[name] = exponent(np.array(sizes), np.array(work)).value
    assert must["layers"] == pytest.approx(1.0)
    assert 1.0 < must["length"] < 1.2
    assert 1.3 < must["width"] < 2.0
