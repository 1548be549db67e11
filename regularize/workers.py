"""Where the cells of a comparison are carried out: in processes of this machine, or on a cluster.

    --cluster dask:tcp://HOST:8786     the Dask cluster of that scheduler
    --cluster dask:scheduler.json      ... of that scheduler file
    --cluster ray:auto                 the Ray cluster that this machine belongs to
    --cluster ray:HOST:6379            ... of that head node

The cluster runs already; joblib's own backends reach it. Every worker needs this package, the data
that the cells read, and the folders OUT and PROBES under the same paths as here, such as on a
network disk: results are files in OUT. A worker does one cell at a time, because a cell seeds the
random numbers of its process. So start Dask's workers with `--nthreads 1`, one for each GPU if
there are any (as dask-cuda does); of Ray a cell asks for one GPU, or for as many CPUs as the
testbed's runs have threads.

A cell whose worker is lost is begun anew, twice at most: by another worker, to which Dask's
scheduler gives it; or alone, as on one machine (`cells`), where Dask gives it up, and under Ray.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Any, TypeVar

from joblib import Parallel, delayed, parallel_config

from probes.errors import InputError

if TYPE_CHECKING:
    from regularize.compare import CompareConfig
    from regularize.testbeds import Recipe

T = TypeVar("T")
WAIT = 30
"""Seconds in which a cluster must answer."""
WAIT_FOR_WORKERS = 300
"""Seconds in which it must have a worker: the first, or another where all have been lost."""


@dataclass(frozen=True)
class Workers:
    """What does several things side by side, each in a process of its own."""

    n: int
    """How many at a time, as joblib counts: -1 is all there are."""
    threads: int | None = None
    """Of each, where they are not this machine's."""
    streams: bool = True
    """Whether results come one by one, or all at the end."""

    @property
    def elsewhere(self) -> bool:
        """Whether they are a cluster's."""
        return self.threads is not None

    def map(self, function: Callable[..., T], arguments: Iterable[tuple[Any, ...]]) -> Iterator[T]:
        """`function(*one)` of each, in the order in which they end.

        Raises:
            Exception: The function's own, or that of a pool one of whose processes has died.
        """
        parallel = Parallel(self.n, return_as="generator_unordered" if self.streams else "list")
        if self.elsewhere:
            calls = (delayed(_there)(self.threads, function, *one) for one in arguments)
        else:
            calls = (delayed(function)(*one) for one in arguments)
        yield from parallel(calls)

    def first(self, function: Callable[..., object], arguments: Iterable[tuple[Any, ...]]) -> None:
        """What comes before all else: here, where it can be seen, unless the work is elsewhere."""
        if self.elsewhere:
            list(self.map(function, arguments))
        else:
            for one in arguments:
                function(*one)


@contextmanager
def workers(config: CompareConfig) -> Iterator[Workers]:
    """Those that the command names, as long as they are needed.

    Raises:
        InputError: The cluster cannot be reached, or cannot be used as it is.
    """
    if config.cluster is None:
        with parallel_config(backend="loky", inner_max_num_threads=config.recipe.threads):
            yield Workers(config.jobs)
        return
    kind, _, address = config.cluster.partition(":")
    connect = {"dask": _dask, "ray": _ray}[kind]
    try:
        __import__("distributed" if kind == "dask" else "ray")
    except ImportError as error:
        raise InputError(
            f"--cluster {config.cluster}: {kind} is not installed here; pip install "
            f"'activation-critic[cluster-{kind}]'"
        ) from error
    with connect(address, config.recipe) as found:
        _refuse_strangers(found, config)
        yield found


def shared(config: CompareConfig) -> CompareConfig:
    """With folders that mean the same wherever a worker stands."""
    if config.cluster is None:
        return config
    return replace(config, out=config.out.resolve(), probes=config.probes.resolve())


@contextmanager
def _dask(address: str, recipe: Recipe) -> Iterator[Workers]:
    from distributed import Client
    from joblib._dask import DaskDistributedBackend

    class Backend(DaskDistributedBackend):
        """joblib's own, but for two things that would leave one waiting, or here."""

        def submit(self, func: Any, callback: Any = None) -> Any:
            """It does not tell when Dask gives a task up."""
            found = super().submit(func, callback)
            found.add_done_callback(lambda done: done.exception() and callback(done.exception()))
            return found

        def effective_n_jobs(self, n_jobs: int) -> int:
            """Of one worker joblib would make this very process."""
            return max(2, super().effective_n_jobs(n_jobs))

    where = {"scheduler_file": address} if address.endswith(".json") else {"address": address}
    try:
        client = Client(**where, timeout=WAIT, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        raise InputError(f"--cluster dask:{address}: no scheduler answers ({error})") from error
    with client:
        try:
            client.submit(int).result(timeout=WAIT_FOR_WORKERS)  # a cluster may grow on demand
        except TimeoutError as error:
            raise InputError(f"--cluster dask:{address}: it has no workers") from error
        if crowded := [worker for worker, n in client.ncores().items() if n > 1]:
            raise InputError(
                f"--cluster dask:{address}: a cell needs its process for itself, but {crowded[0]} "
                "does several things at a time: start workers with --nthreads 1"
            )
        backend = Backend(client=client, wait_for_workers_timeout=WAIT_FOR_WORKERS)
        with parallel_config(backend=backend):
            yield Workers(-1, recipe.threads)


@contextmanager
def _ray(address: str, recipe: Recipe) -> Iterator[Workers]:
    import ray
    from ray.util.joblib import register_ray

    ours = not ray.is_initialized()
    if ours:
        try:
            ray.init(address=address, log_to_driver=False)
        except (OSError, ValueError, RuntimeError) as error:
            raise InputError(f"--cluster ray:{address}: no such cluster ({error})") from error
    try:
        there = ray.cluster_resources()
        gpus = 0 if recipe.device_map == "cpu" else int(there.get("GPU", 0))
        n = gpus or int(there.get("CPU", 0)) // recipe.threads
        if n < 2:  # of one, joblib would make this very process
            raise InputError(
                f"--cluster ray:{address}: it has room for {n} cells at a time; leave --cluster "
                "away, and start the command on that machine"
            )
        each = {"num_gpus": 1} if gpus else {"num_cpus": recipe.threads}
        register_ray()
        with parallel_config(backend="ray", ray_remote_args=each):
            yield Workers(n, recipe.threads, streams=False)
    finally:
        if ours:
            ray.shutdown()


def _refuse_strangers(found: Workers, config: CompareConfig) -> None:
    """Refuse workers that cannot do cells.

    Raises:
        InputError: They lack this package, or do not see the folder OUT.
    """
    out = config.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile(dir=out, prefix=".cluster-") as token:
        try:
            seen = list(found.map(_sees, [(token.name,)] * 4))
        # Whatever a worker without the package, or with another release of it, answers.
        except Exception as error:
            raise InputError(
                f"--cluster {config.cluster}: its workers cannot do cells "
                f"({type(error).__name__}: {error}); they need this package, in this release"
            ) from error
    if not all(seen):
        raise InputError(
            f"--cluster {config.cluster}: its workers do not see {out}, where the results go; give "
            "a folder that they share with this machine, as --out"
        )


def _sees(path: str) -> bool:
    return Path(path).is_file()


def _there(threads: int, function: Callable[..., T], *arguments: Any) -> T:
    """In a worker of a cluster: on so many threads, and nothing of it handed on to the cluster."""
    import torch

    torch.set_num_threads(threads)
    with parallel_config(backend="sequential"):
        return function(*arguments)
