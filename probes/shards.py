"""The cache's files: written whole or not at all, and checked whenever they are read.

A file appears by renaming a finished temporary one in the same folder, so that a run killed at any
moment leaves whole files and, at worst, a temporary one that the next build removes. Each tensor
stands beside its own sha256 in the shard's header: reading one layer checks one layer.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from probes.errors import InputError
from probes.hooks import Site
from probes.manifest import Manifest

MANIFEST, INDEX = "manifest.json", "index.parquet"

_TEMPORARY = re.compile(
    r"\.(manifest\.json|index\.parquet|shard-\d+\.safetensors)\.[0-9a-f]{32}\.tmp"
)
# One entry only: safetensors writes several in an order that changes from process to process.
_HEADER = "activations"


class CacheError(InputError):
    """A cache cannot be written, read or shared; the message names the file and the remedy."""


@dataclass(frozen=True)
class Shards:
    """The activations on disk: `shard-00000.safetensors`, one tensor a site."""

    directory: Path
    manifest: Manifest

    def path(self, shard: int) -> Path:
        """File of a shard."""
        return self.directory / f"shard-{shard:05d}.safetensors"

    def missing(self) -> list[int]:
        """Shards that are not there yet."""
        return [i for i in range(self.manifest.n_shards) if not self.path(i).exists()]

    def write(self, shard: int, activations: Float[Tensor, "prompt site d_model"]) -> None:
        """Write one shard, in the dtype it comes in.

        Raises:
            ValueError: If the shape is not the manifest's.
            CacheError: If the disk is full or the folder cannot be written.
        """
        if tuple(activations.shape) != self._shape(shard):
            raise ValueError(
                f"shard {shard} should be {self._shape(shard)} (prompt, site, d_model), "
                f"the backend gave {tuple(activations.shape)}"
            )
        names = [site.name for site in self.manifest.sites]
        # Bound to the same name, so that the other order's memory is free before it is encoded.
        activations = activations.transpose(0, 1).contiguous()
        tensors = dict(zip(names, activations, strict=True))
        digests = {name: _digest(tensor) for name, tensor in tensors.items()}
        header = {"manifest": self.manifest.hash, "shard": shard, "sha256": digests}
        data = save(tensors, {_HEADER: json.dumps(header, sort_keys=True)})
        write_atomically(self.path(shard), data)

    def check(self, shard: int) -> None:
        """Check a shard's header: whole, of this manifest, every tensor there. Reads no tensor.

        Raises:
            CacheError: If it is not so.
        """
        with self._open(shard):
            pass

    def read(self, shard: int, sites: Sequence[Site]) -> Float[Tensor, "prompt site d_model"]:
        """Read some sites of one shard, in the dtype they were stored in.

        Raises:
            CacheError: If the shard is missing or damaged.
        """
        prompts, _, d_model = self._shape(shard)
        block: Tensor | None = None
        with self._open(shard) as (file, digests):
            for column, site in enumerate(sites):
                tensor = file.get_tensor(site.name)
                if _digest(tensor) != digests[site.name]:
                    raise _damaged(self.path(shard), f"{site.name} has changed on disk")
                if block is None:
                    block = tensor.new_empty((prompts, len(sites), d_model))
                block[:, column] = tensor
        return block if block is not None else torch.empty((prompts, 0, d_model))

    def _shape(self, shard: int) -> tuple[int, int, int]:
        rows = self.manifest.rows(shard)
        return rows.stop - rows.start, len(self.manifest.sites), self.manifest.d_model

    @contextmanager
    def _open(self, shard: int) -> Iterator[tuple[safe_open, dict[str, str]]]:
        path = self.path(shard)
        prompts, _, d_model = self._shape(shard)
        names = {site.name for site in self.manifest.sites}
        try:
            with safe_open(path, framework="pt") as file:
                header = json.loads((file.metadata() or {})[_HEADER])
                if header["manifest"] != self.manifest.hash:
                    raise _damaged(path, "it belongs to another manifest")
                if header["shard"] != shard:
                    raise _damaged(path, f"it is shard {header['shard']} under another name")
                if set(file.keys()) != names or set(header["sha256"]) != names:
                    raise _damaged(path, "its layers are not the manifest's")
                if any(file.get_slice(n).get_shape() != [prompts, d_model] for n in names):
                    raise _damaged(path, "its shape is not the manifest's")
                yield file, header["sha256"]
        except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise _damaged(path, f"it cannot be read ({error})") from error


def write_atomically(path: Path, data: bytes) -> None:
    """Let a file appear under its name only when all of it is on the disk.

    Raises:
        CacheError: If the disk is full or the folder cannot be written; no part of it stays.
    """
    for _ in range(3):
        temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except FileNotFoundError:
            continue  # another build took it for a killed run's: write it again
        except OSError as error:
            raise CacheError(_cannot_write(path, len(data), error)) from error
        finally:
            with suppress(OSError):
                temporary.unlink()
        _sync_folder(path.parent)
        return
    raise CacheError(f"{path.parent} was removed while {path.name} was written: run it again")


def make_folder(directory: Path) -> None:
    """Make a cache's folder, and remove what killed runs left half-written in it.

    Raises:
        CacheError: If it cannot be made.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CacheError(
            f"{directory} cannot be made ({error.strerror}): give another folder for the cache"
        ) from error
    for path in directory.iterdir():
        if _TEMPORARY.fullmatch(path.name):
            with suppress(OSError):  # it is only litter
                path.unlink()


def seen(path: Path, seconds: float = 90.0) -> bool:
    """Whether a file is there that another machine has written; shared disks tell it late."""
    until = time.monotonic() + seconds
    while not path.exists():
        if time.monotonic() > until:
            return False
        time.sleep(0.2)
    return True


def _digest(tensor: Tensor) -> str:
    """sha256 of a tensor's dtype, shape and bytes."""
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _damaged(path: Path, why: str) -> CacheError:
    return CacheError(
        f"{path}: {why}. Delete this file and run the same command again: "
        "it alone is computed anew, the other shards are kept"
    )


def _cannot_write(path: Path, size: int, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        free = shutil.disk_usage(path.parent).free
        return (
            f"no room for {path}: it needs {size / 1e6:.3f} MB, {free / 1e6:.3f} MB are free "
            f"({error.strerror}). Make room and run the same command again: "
            "the shards that are there are kept"
        )
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return (
            f"{path.parent} cannot be written ({error.strerror}): give another folder for the "
            "cache or make it writable; the shards that are there are kept"
        )
    return f"{path} cannot be written ({error.strerror}); the shards that are there are kept"


def _sync_folder(directory: Path) -> None:
    """Make a rename outlast a power cut, where the system can do so for a folder."""
    with suppress(OSError):
        folder = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
