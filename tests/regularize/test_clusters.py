"""Cells on a Dask cluster of two workers, one of which is killed; and what a cluster must be."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from analysis import figures
from probes.errors import InputError
from regularize import cells, grid, workers
from regularize.arms import Run
from regularize.compare import CompareConfig, main
from tests.regularize import faked_cells
from tests.regularize.faked_cells import plan, tries

ARMS = ("none/none", "constant-kl-0.5/none")


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CompareConfig:
    monkeypatch.setattr(cells, "_cell", faked_cells.cell)
    monkeypatch.setattr(cells, "_prepare", faked_cells.prepare)
    monkeypatch.setattr(figures, "redraw", lambda tables, folder: [])
    monkeypatch.chdir(tmp_path)
    plan(tmp_path / "out")
    return CompareConfig(
        models=("miniature/llama",), experiments=("all-harmful",), seeds=(1, 2), arms=ARMS,
        out=Path("out"), probes=Path("probes"),
    )  # fmt: skip


@contextmanager
def dask(n: int, threads: int = 1, processes: bool = True, **settings: object) -> Iterator[str]:
    """A cluster of this machine, by its address."""
    distributed = pytest.importorskip("distributed")
    import dask

    with (
        dask.config.set(settings),
        distributed.LocalCluster(
            n_workers=n, threads_per_worker=threads, processes=processes, protocol="tcp",
            dashboard_address=None, silence_logs=50,
        ) as cluster,
    ):  # fmt: skip
        yield f"dask:{cluster.scheduler_address}"


@pytest.fixture(scope="module")
def two_workers() -> Iterator[str]:
    with dask(2) as address:
        yield address


def pids(config: CompareConfig, run: Run) -> list[str]:
    return [line.split()[0] for line in (config.out / "tries" / run.name).read_text().splitlines()]


def test_a_killed_worker_loses_nothing(
    config: CompareConfig, two_workers: str, tmp_path: Path
) -> None:
    """Dask gives its cell to another; one that kills whoever tries it is given up."""
    first, deadly, *_ = runs = grid.runs(config)
    plan(config.out, **{first.name: "die-once", deadly.name: "die"})
    with pytest.raises(InputError, match=r"runs that failed: 1\.") as refused:
        main(replace(config, cluster=two_workers))
    assert f"{deadly.name}: {cells.KILLED}" in str(refused.value)
    assert [one for one in runs if not grid.is_done(one, config)] == [deadly]
    for one in (first, deadly):
        assert len(set(pids(config, one))) == tries(config.out, one) == 2
    assert {tries(config.out, one) for one in runs[2:]} == {1}
    assert (tmp_path / "out" / "evaluations.csv").is_file()


def test_workers_without_the_folder_are_refused(
    config: CompareConfig, two_workers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_sees", str.isdigit)
    with pytest.raises(InputError, match=r"do not see .*/out"):
        main(replace(config, cluster=two_workers))
    assert not any(tries(config.out, one) for one in grid.runs(config))


def test_workers_without_the_package_are_refused(
    config: CompareConfig, two_workers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacks(*_: object) -> Iterator[bool]:
        raise ModuleNotFoundError("No module named 'regularize'")

    monkeypatch.setattr(workers.Workers, "map", lacks)
    with pytest.raises(InputError, match="they need this package"):
        main(replace(config, cluster=two_workers))


def test_a_cell_that_dask_gives_up_and_a_single_worker(config: CompareConfig) -> None:
    """Joblib would wait for the one for ever, and do the work of the other in this process."""
    deadly, *others = grid.runs(config)
    plan(config.out, **{deadly.name: "die"})
    with (
        dask(1, **{"distributed.scheduler.allowed-failures": 0}) as address,
        pytest.raises(InputError, match=r"runs that failed: 1\."),
    ):
        main(replace(config, cluster=address))
    assert tries(config.out, deadly) == 2 and all(grid.is_done(one, config) for one in others)
    assert str(os.getpid()) not in {pid for one in others for pid in pids(config, one)}


def test_workers_that_do_several_things_at_a_time_are_refused(config: CompareConfig) -> None:
    with (
        dask(1, threads=2, processes=False) as address,
        pytest.raises(InputError, match="start workers with --nthreads 1"),
    ):
        main(replace(config, cluster=address))


def test_a_cluster_that_does_not_answer(
    config: CompareConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr(workers, "WAIT", 1)
    with pytest.raises(InputError, match="no scheduler answers"):
        main(replace(config, cluster="dask:tcp://127.0.0.1:9"))


@pytest.mark.parametrize("kind", ["dask", "ray"])
def test_what_is_not_installed_is_named(
    config: CompareConfig, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setitem(sys.modules, {"dask": "distributed"}.get(kind, kind), None)
    with pytest.raises(InputError, match=rf"pip install 'activation-critic\[cluster-{kind}\]'"):
        main(replace(config, cluster=f"{kind}:auto"))


class FakeRay(SimpleNamespace):
    """What `workers` asks of ray; its pool is joblib's loky."""

    def __init__(self, **resources: float) -> None:
        super().__init__(said=[], cluster_resources=lambda: resources)

    def is_initialized(self) -> bool:
        return False

    def init(self, address: str, **options: object) -> None:
        self.said.append(("init", address))

    def shutdown(self) -> None:
        self.said.append(("shutdown",))


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Stands for the module; its backend is loky's under another name, and gives a list."""
    import joblib
    from joblib._parallel_backends import LokyBackend
    from joblib.parallel import BACKENDS

    fake = FakeRay(CPU=2.0)

    class Backend(LokyBackend):
        supports_return_generator = False

        def __init__(self, ray_remote_args: dict, **options: Any) -> None:
            fake.said.append(ray_remote_args)
            super().__init__(**options)

    module = SimpleNamespace(register_ray=lambda: joblib.register_parallel_backend("ray", Backend))
    for name, value in (("ray", fake), ("ray.util", fake), ("ray.util.joblib", module)):
        monkeypatch.setitem(sys.modules, name, value)
    yield fake
    BACKENDS.pop("ray", None)


def test_ray_through_its_own_backend(config: CompareConfig, ray: Any) -> None:
    main(replace(config, cluster="ray:auto"))
    assert ray.said == [("init", "auto"), {"num_cpus": 1}, ("shutdown",)]
    assert all(grid.is_done(one, config) for one in grid.runs(config))


def test_ray_with_room_for_one_cell(config: CompareConfig, ray: Any) -> None:
    ray.cluster_resources = lambda: {"CPU": 1.0}
    with pytest.raises(InputError, match="room for 1 cells at a time; leave --cluster away"):
        main(replace(config, cluster="ray:10.0.0.7:6379"))
    assert ray.said == [("init", "10.0.0.7:6379"), ("shutdown",)]


def test_a_killed_worker_of_a_real_ray(config: CompareConfig) -> None:
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    first, deadly, *others = grid.runs(config)
    plan(config.out, **{first.name: "die-once", deadly.name: "die"})
    try:
        with pytest.raises(InputError, match=r"runs that failed: 1\.") as refused:
            main(replace(config, cluster="ray:auto"))
    finally:
        ray.shutdown()
    assert f"{deadly.name}: {cells.KILLED}" in str(refused.value)
    assert all(grid.is_done(one, config) for one in (first, *others))
    assert tries(config.out, deadly) == 2
    assert str(os.getpid()) not in {pid for one in others for pid in pids(config, one)}
