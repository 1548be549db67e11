"""What a cache was made from. Activations may be shared only where all of it is equal.

Everything that can change a number in the cache, or the row or label it stands for, is a field
here: the manifest is the cache's identity, its hash is part of the folder's name and is written
into every file, and two manifests that differ say in which field.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from probes.backends import Backend
from probes.errors import InputError
from probes.hooks import EMBEDDING, LAST, HookPoint, Position, Site, check_position, sites
from probes.models import ChatModel, template_hash, weights_fingerprint
from probes.prompts import PromptSet

LAYOUT = 1
"""Raised when the same manifest begins to mean other numbers or files: prompts rendered or cut in
another way, files laid out in another way. The package's own version is no field, so that a release
which changes none of this keeps every cache."""

# Where a config was read from and by which release (that is in `versions`) changes no activation.
_NOT_THE_MODEL = ("_name_or_path", "transformers_version")


@dataclass(frozen=True)
class Manifest:
    """Identity of an activation cache, saved as `manifest.json`."""

    model: str
    """Hub id, folder or file that the model was loaded from."""
    revision: str | None
    """Commit, branch or tag of the hub repository."""
    weights: str
    """Fingerprint of all parameters and buffers."""
    config: str
    """Hash of the model's config: equal weights compute otherwise under another RoPE base."""
    dtype: str
    """The weights' dtype, as `bfloat16`."""
    hook_point: HookPoint
    """Where each block is read, a TransformerLens name without `hook_`."""
    position: Position
    """Which tokens of each prompt are read: a name of `probes.positions`."""
    template: str
    """Hash of the chat template."""
    tokenizer: str
    """Hash of the vocabulary, merges, normalisation and special tokens."""
    prompt_set: str
    """Name of the prompt set."""
    prompts: str
    """Hash of the prompts' ids, labels and groups, in order."""
    sources: str
    """Hash of the prompts' sources, in order."""
    max_length: int | None
    """Tokens that a prompt may have before it is cut; None: never cut."""
    backend: str
    """Library that ran the model."""
    n_prompts: int
    n_layers: int
    d_model: int
    shard_size: int
    """Prompts a shard."""
    token_budget: int
    """Padded tokens a batch: the shape of a batch decides the last bits of its activations."""
    versions: dict[str, str]
    """Releases of the libraries that computed the activations."""
    layout: int = LAYOUT
    """Version of what this package makes of all that."""

    @classmethod
    def of(
        cls,
        chat: ChatModel,
        prompts: PromptSet,
        *,
        backend: Backend,
        hook_point: HookPoint = "resid_post",
        position: Position = LAST,
        max_length: int | None = None,
        shard_size: int = 1024,
        token_budget: int = 4096,
        weights: str | None = None,
    ) -> "Manifest":
        """Describe the cache of these prompts' activations in this model.

        Args:
            chat: The model, its tokenizer and where they came from.
            prompts: What it reads.
            backend: What runs the model.
            hook_point: Where each block is read.
            position: Which tokens are read.
            max_length: Tokens that a prompt may have before it is cut; None: never cut.
            shard_size: Prompts a shard: what is lost at most when a run is killed.
            token_budget: Padded tokens a batch.
            weights: `weights_fingerprint(chat.model)` if it is known, as reading all weights
                takes seconds for a large model; computed if None.

        Raises:
            InputError: If a value is out of its range or there are no prompts.
        """
        sites(hook_point, ())  # refuses an unknown one
        check_position(position)
        for name, value in (("shard_size", shard_size), ("token_budget", token_budget)):
            if value < 1:
                raise InputError(f"{name} is {value}: give a number from 1 on")
        if not len(prompts):
            raise InputError(f"prompt set {prompts.name!r} is empty: there is nothing to cache")
        return cls(
            model=chat.name,
            revision=chat.revision,
            weights=weights if weights is not None else weights_fingerprint(chat.model),
            config=config_hash(chat.model),
            dtype=str(chat.model.dtype).removeprefix("torch."),
            hook_point=hook_point,
            position=position,
            template=template_hash(chat.tokenizer),
            tokenizer=tokenizer_hash(chat.tokenizer),
            prompt_set=prompts.name,
            prompts=prompts.hash,
            sources=json_hash([prompt.source for prompt in prompts.prompts]),
            max_length=max_length,
            backend=backend.name,
            n_prompts=len(prompts),
            n_layers=backend.n_layers,
            d_model=backend.d_model,
            shard_size=shard_size,
            token_budget=token_budget,
            versions=versions_of("torch", "transformers", "tokenizers", backend.name),
        )

    @property
    def sites(self) -> tuple[Site, ...]:
        """What is stored of each prompt: the embedding, then every block, each site once."""
        read = sites(self.hook_point, range(self.n_layers))
        return tuple(dict.fromkeys((EMBEDDING, *read)))

    @property
    def n_shards(self) -> int:
        """Number of shards; the last one may be short."""
        return -(-self.n_prompts // self.shard_size)

    def rows(self, shard: int) -> slice:
        """Prompts that a shard holds."""
        start = shard * self.shard_size
        return slice(start, min(start + self.shard_size, self.n_prompts))

    def differences(self, other: "Manifest") -> list[str]:
        """Name each field in which another manifest differs, with this value and the other's."""
        return [
            f"{field}: {mine!r} here, {theirs!r} there"
            for (field, mine), (_, theirs) in zip(
                _flat(self, other), _flat(other, self), strict=True
            )
            if mine != theirs
        ]

    @property
    def hash(self) -> str:
        """sha256 over all fields."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """The text of `manifest.json`; equal manifests have equal texts."""
        return json.dumps(asdict(self), indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """Read `to_json`'s text.

        Raises:
            ValueError: If it is no JSON object or has not exactly the fields of a manifest.
        """
        values = json.loads(text)
        expected = {field.name for field in fields(cls)}
        if not isinstance(values, dict) or set(values) != expected:
            found = set(values) if isinstance(values, dict) else set()
            raise ValueError(f"fields missing or unknown: {sorted(expected ^ found)}")
        return cls(**values)


def cache_folder(root: Path | str, manifest: Manifest) -> Path:
    """Folder for this manifest below `root`: `<model>/<prompt set>-<12 digits of its hash>`.

    Whatever changes in the manifest leads to another folder, so that no cache is ever in the way
    of another.
    """
    name = f"{slug(manifest.prompt_set)}-{manifest.hash[:12]}"
    return Path(root) / slug(manifest.model) / name


def config_hash(model: PreTrainedModel) -> str:
    """sha256 of a model's config, without where it was read from."""
    values = model.config.to_dict()
    for name in _NOT_THE_MODEL:
        values.pop(name, None)
    return json_hash(values)


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 of all that turns text into token ids, without the state that calls leave in it."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # written in Python: its vocabulary and class are all there is to ask
        rules = {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab()}
    else:
        rules = json.loads(backend.to_str())
        rules.pop("padding", None)
        rules.pop("truncation", None)
    return json_hash({"rules": rules, "special": tokenizer.special_tokens_map})


def json_hash(values: object) -> str:
    """sha256 of values as JSON, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()


def versions_of(*names: str) -> dict[str, str]:
    """Releases of those of the named distributions that are installed."""
    found = {}
    for name in sorted(set(names)):
        with suppress(PackageNotFoundError):  # a backend need not be a library of its own
            found[name] = version(name)
    return found


def _flat(manifest: Manifest, other: Manifest) -> Iterator[tuple[str, object]]:
    """Fields and values, with a line for each library that either manifest names."""
    for name, value in asdict(manifest).items():
        if name != "versions":
            yield name, value
    for library in sorted(manifest.versions.keys() | other.versions.keys()):
        yield f"versions.{library}", manifest.versions.get(library)


def slug(name: str) -> str:
    """A name for a folder: the end of `name`, which tells more than the beginning of a path."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)[-80:].strip("-.") or "unnamed"
