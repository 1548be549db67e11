"""The reference policy at the answer's tokens: frozen, and so a constant of the data.

Under a frozen head, what the exact KL needs of it is d_model + 1 numbers a token (`losses.Moments`)
instead of a second forward pass at every step of every epoch. Three ways to the same numbers:

    cached       computed once, on disk: fingerprinted, resumable, checked when it is read
    adapter-off  computed at every step, with the adapter switched off
    copy         computed at every step, by a frozen copy of the model
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import logging
import shutil
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel

from probes.blocks import evaluating
from probes.errors import InputError
from probes.manifest import json_hash
from probes.models import weights_fingerprint
from probes.shards import MANIFEST, make_folder, write_atomically
from regularize.data import IGNORE, Encoded
from regularize.defences import Defence
from regularize.losses import Head, Hidden, Moments, moments
from regularize.model import Capture, adapter_off, base_of, decode, head_of
from regularize.passes import answer_states

Kind = Literal["auto", "cached", "adapter-off", "copy"]
SHARD, TOKENS = 512, 2**15
"""Most examples, and most answer tokens, in one file: what a killed run loses at most."""
FREE = 0.5
"""Share of the free disk that the cache may fill."""

log = logging.getLogger(__name__)


class Batch(NamedTuple):
    """What a reference may look at."""

    ids: Int[Tensor, "batch token"]
    mask: Int[Tensor, "batch token"]
    answer: Bool[Tensor, "batch place"]
    row: Int[Tensor, "batch"]
    """Number of each example in the data."""


class Reference(ABC):
    """Gives the reference policy at a batch's answer tokens, in their order."""

    @abstractmethod
    def at(self, batch: Batch) -> Moments | Hidden:
        """Of all answer tokens of the batch, example by example."""


class AdapterOff(Reference):
    """The model without its adapter."""

    def __init__(self, model: nn.Module, states: Capture | None = None) -> None:
        """Say how the model is run.

        Args:
            model: With its adapter.
            states: What runs it as the policy is run, through all that shards it.

        Raises:
            InputError: There is no adapter, or more than it was trained.
        """
        if not hasattr(model, "disable_adapter"):
            raise InputError(
                "--reference adapter-off needs an adapter to switch off; with full fine-tuning "
                "choose cached or copy"
            )
        configs = getattr(model, "peft_config", {}).values()
        if any(getattr(config, "bias", "none") != "none" for config in configs):
            raise InputError(
                "--reference adapter-off: this adapter trains biases of the model itself, which "
                "stay when it is switched off; choose cached or copy, or train no biases"
            )
        self._model, self._states = model, states or Capture(model)

    @torch.no_grad()
    def at(self, batch: Batch) -> Hidden:
        """By another forward pass."""
        with adapter_off(self._model), evaluating(self._model):
            hidden = self._states(self._model, batch.ids, batch.mask)
        return Hidden(hidden[:, :-1][batch.answer], head_of(self._model))


class Copied(Reference):
    """A frozen copy of the model as it is now, without its adapter."""

    def __init__(self, model: nn.Module) -> None:
        self._model = copy.deepcopy(model).requires_grad_(False).eval()

    @torch.no_grad()
    def at(self, batch: Batch) -> Hidden:
        """By a forward pass of the copy."""
        with adapter_off(self._model):
            hidden = decode(base_of(self._model), batch.ids, batch.mask)
        return Hidden(hidden[:, :-1][batch.answer], head_of(self._model))


class Cached(Reference):
    """On disk, computed once. `Cached.build` makes it or finds it."""

    def __init__(self, folder: Path, manifest: dict[str, object], counts: np.ndarray) -> None:
        self._folder, self._names = folder, _names(str(manifest["holds"]))
        self._start = np.concatenate([[0], np.cumsum(counts)])
        self._head: Head | None = None
        self._rows = _spans(counts)
        self._shards = [_checked(folder, i, manifest) for i in range(len(self._rows))]

    @classmethod
    def build(
        cls,
        cache: Path,
        model: nn.Module,
        rows: Sequence[Encoded],
        *,
        trains_head: bool = False,
        hidden: bool = False,
        token_budget: int = 4096,
        pad: int = 0,
        progress: bool = False,
    ) -> Cached:
        """The reference at the answer tokens of some rows; what is already there is kept.

        Args:
            cache: Folder of caches; this one gets a folder of its own, named by its fingerprint.
            model: The reference: before training, without an adapter or with it switched off.
            rows: All examples that will be trained on.
            trains_head: The head will change: hidden states are kept, and a copy of the head.
            hidden: Keep hidden states, which the reverse KL needs.
            token_budget: Padded tokens in one forward pass.
            pad: Id of the padding token.
            progress: Show a bar.

        Raises:
            InputError: The disk is full, or a file there is damaged.
        """
        base, head = base_of(model), head_of(model)
        counts = np.array([sum(label != IGNORE for label in row.labels) for row in rows])
        holds = "hidden" if trains_head or hidden else "moments"
        manifest: dict[str, object] = {
            "weights": weights_fingerprint(base),
            "rows": _hash(rows),
            "holds": holds,
            "dtype": str(base.dtype),
            "device": base.device.type,
            "shard": [SHARD, TOKENS],
            "format": 1,
        }
        folder = cache / f"reference-{json_hash(manifest)[:16]}"
        make_folder(folder)
        write_atomically(folder / MANIFEST, json.dumps(manifest, indent=2).encode())
        spans = _spans(counts)
        missing = [i for i in range(len(spans)) if not _path(folder, i).exists()]
        todo = sum(len(spans[i]) for i in missing)
        with (
            adapter_off(model),
            evaluating(model),
            torch.no_grad(),
            tqdm(total=todo, desc="reference", unit="row", disable=not progress or not todo) as bar,
        ):
            for shard in missing:
                part = rows[spans[shard].start : spans[shard].stop]
                tensors = _compute(base, head, part, holds, token_budget, pad, bar)
                data = _bytes(tensors, shard, manifest)
                write_atomically(_path(folder, shard), data)
        found = cls(folder, manifest, counts)
        if trains_head:
            copied = [None if t is None else t.detach().clone() for t in head]
            found._head = Head(*copied)  # type: ignore[arg-type]
        elif hidden:
            found._head = head
        return found

    def at(self, batch: Batch) -> Moments | Hidden:
        """Read from the disk's pages, as numbers of the batch's device."""
        parts = [self._read(int(row)) for row in batch.row]
        first, *rest = (torch.cat(column) for column in zip(*parts, strict=True))
        device = batch.ids.device
        first = first.to(device, non_blocking=True)
        if self._head is not None:
            return Hidden(first, self._head)
        return Moments(first, rest[0].to(device, non_blocking=True))

    def _read(self, row: int) -> list[Tensor]:
        shard = bisect_right(self._rows, row, key=lambda rows: rows.start) - 1
        offset = self._start[self._rows[shard].start]
        span = slice(int(self._start[row] - offset), int(self._start[row + 1] - offset))
        return [self._shards[shard].get_slice(name)[span] for name in self._names]


def choose(
    kind: Kind, model: nn.Module, rows: Sequence[Encoded], cache: Path
) -> Literal["cached", "adapter-off", "copy"]:
    """What `auto` stands for here; says why in the log."""
    if kind != "auto":
        return kind
    base = base_of(model)
    tokens = sum(label != IGNORE for row in rows for label in row.labels)
    needed = 4 * tokens * (int(base.config.get_text_config().hidden_size) + 1)
    parent = next(path for path in (cache, *cache.absolute().parents) if path.exists())
    free = shutil.disk_usage(parent).free
    if needed <= FREE * free:
        log.info("reference: cached, %.1f MB for %d answer tokens", needed / 1e6, tokens)
        return "cached"
    other: Literal["adapter-off", "copy"] = (
        "adapter-off" if hasattr(model, "disable_adapter") else "copy"
    )
    log.info(
        "reference: %s, for a cache would take %.1f of the %.1f GB that are free at %s",
        other, needed / 1e9, free / 1e9, parent,
    )  # fmt: skip
    return other


def same_head(a: nn.Module, b: nn.Module) -> bool:
    """Whether two models map hidden states to logits alike."""
    for ours, theirs in zip(head_of(a), head_of(b), strict=True):
        if ours is None or theirs is None:
            if ours is not theirs:
                return False
        elif ours.shape != theirs.shape or not torch.equal(ours, theirs):
            return False
    return True


def refuse_other(other: nn.Module, policy: nn.Module, defence: Defence, kind: Kind) -> None:
    """Refuse a reference that is another model than the policy, where it cannot be one.

    Raises:
        InputError: Its vocabulary is another, the defence changes the policy's start and wants that
            for a reference, or the reference is to be the policy without its adapter.
    """
    sizes = [len(head_of(model).weight) for model in (other, policy)]
    if sizes[0] != sizes[1]:
        raise InputError(
            f"the reference model has {sizes[0]} logits and the policy {sizes[1]}: a KL needs one "
            "vocabulary"
        )
    if kind == "adapter-off":
        raise InputError(
            "--reference adapter-off is the policy without its adapter, but the reference is "
            "another model here; choose cached or copy"
        )
    if defence.changes_start:
        raise InputError(
            f"{type(defence).__name__} changes the weights that training starts from, which are "
            "then its reference: it takes no other reference model"
        )


def _compute(
    base: PreTrainedModel,
    head: Head,
    rows: Sequence[Encoded],
    holds: str,
    token_budget: int,
    pad: int,
    bar: tqdm,
) -> dict[str, Tensor]:
    """The tensors of one shard, computed in batches of like length and put back into order."""
    found: list[tuple[Tensor, ...]] = [()] * len(rows)
    for part in answer_states(base, rows, token_budget=token_budget, pad=pad):
        kept = (part.hidden,) if holds == "hidden" else moments(part.hidden, head)
        for row, *one in zip(part.rows, *(t.cpu().split(part.counts) for t in kept), strict=True):
            found[row] = tuple(one)
        bar.update(len(part.rows))
    columns = (torch.cat(column) for column in zip(*found, strict=True))
    return dict(zip(_names(holds), columns, strict=True))


def _spans(counts: np.ndarray) -> list[range]:
    """The examples of each file, by their numbers of answer tokens."""
    starts, tokens = [0], 0
    for row, count in enumerate(counts.tolist()):
        if row > starts[-1] and (row - starts[-1] == SHARD or tokens + count > TOKENS):
            starts.append(row)
            tokens = 0
        tokens += count
    return [range(*pair) for pair in itertools.pairwise([*starts, len(counts)])]


def _names(holds: str) -> tuple[str, ...]:
    return ("hidden",) if holds == "hidden" else ("mu", "c")


def _path(folder: Path, shard: int) -> Path:
    return folder / f"shard-{shard:05d}.safetensors"


def _hash(rows: Sequence[Encoded]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps([row.input_ids, row.labels]).encode())
    return digest.hexdigest()


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(tensors[name].contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _bytes(tensors: dict[str, Tensor], shard: int, manifest: dict[str, object]) -> bytes:
    written = {"shard": shard, "sha256": _digest(tensors), "manifest": manifest}
    return save(tensors, {"reference": json.dumps(written, sort_keys=True)})


def _checked(folder: Path, shard: int, manifest: dict[str, object]) -> safe_open:
    """An open shard, after its bytes were held to its own digest."""
    path = _path(folder, shard)
    try:
        file = safe_open(path, framework="pt").__enter__()
        header = json.loads((file.metadata() or {})["reference"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        whole = header["manifest"] == manifest and header["shard"] == shard
        if not whole or header["sha256"] != _digest(tensors):
            raise ValueError("its contents are not what was written")
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise InputError(
            f"{path}: it cannot be used ({error}). Delete this file and run the same command "
            "again: it alone is computed anew"
        ) from error
    return file
