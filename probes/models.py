"""Load a chat model by hub id, folder or GGUF file.

    >>> chat = load("Qwen/Qwen2.5-3B-Instruct", dtype="bfloat16", device_map="auto")
    >>> render(chat.tokenizer, [{"role": "user", "content": "Hello"}]).position

Whatever is wrong with a model is said before anything is computed with it.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import align_module_device  # type: ignore[import-untyped]
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from probes.blocks import blocks
from probes.errors import InputError
from probes.ranks import own_device, started
from probes.rendering import PLAIN_TEMPLATE, Rendered, last_token_text, render, template_hash

__all__ = [
    "ChatModel",
    "Rendered",
    "context_length",
    "last_token_text",
    "load",
    "render",
    "template_hash",
    "weights_fingerprint",
]

DTYPES = ("auto", "float32", "bfloat16", "float16")
SPREADS = ("auto", "balanced", "balanced_low_0", "sequential")
"""Device maps that take every card there is."""


@dataclass(frozen=True)
class ChatModel:
    """A model, its tokenizer, and where they came from."""

    name: str
    """As it was asked for: hub id, path, or miniature/FAMILY."""
    revision: str | None
    """Hub revision asked for; None for the default branch, and for folders and files."""
    model: PreTrainedModel
    """In evaluation mode."""
    tokenizer: PreTrainedTokenizerBase
    """With the chat template that is used."""


def load(
    spec: str,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    device_map: str | None = None,
    chat_template: str | None = None,
    weights: bool = True,
) -> ChatModel:
    """Load a decoder-only chat model and its tokenizer.

    Args:
        spec: Hub id, folder, `.gguf` file, `miniature/FAMILY` or `miniature/FAMILY-base`,
            `realistic/aligned` or `realistic/base`.
        revision: Branch, tag or commit of the hub repository.
        dtype: float32, bfloat16 or float16; auto: the checkpoint's own, but float32 for float16 on
            a CPU, which holds the same numbers and computes many times as fast there.
        device_map: As in transformers: auto, cpu, cuda:0, ... None: all accelerators if there are
            any; this process's own where `torchrun` has started several.
        chat_template: A Jinja file, or `plain` for `User: ... Assistant:`; None: the tokenizer's.
        weights: False builds the model's shape alone, without memory for its weights, for
            execution elsewhere (`open_backend(model, "nnsight", remote=True)`).

    Raises:
        InputError: What was given is no such model, or not wholly there.
    """
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r} is none of: {', '.join(DTYPES)}")
    where, options = _locate(spec, revision)
    with _plain_words(spec, revision):
        config = AutoConfig.from_pretrained(where, **options)
    if config.is_encoder_decoder or type(config) not in AutoModelForCausalLM._model_mapping:
        raise InputError(
            f"{spec} is a {config.model_type} model, not a decoder-only language model"
        )
    with _plain_words(spec, revision):
        tokenizer = AutoTokenizer.from_pretrained(where, **options)
        if weights:
            model = _with_weights(spec, where, dtype, device_map, options)
        else:
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(config)
    try:
        blocks(model)
    except InputError as error:  # such as BERT, which transformers would run as a causal model
        raise InputError(f"{spec}: {error}") from error
    _check_vocabulary(spec, tokenizer, model)
    if chat_template is not None:
        tokenizer.chat_template = _read_template(chat_template, tokenizer)
    return ChatModel(spec, revision, model.eval(), tokenizer)


def context_length(model: PreTrainedModel) -> int | None:
    """Most tokens that the model was built for; None if its config does not say."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def weights_fingerprint(model: PreTrainedModel) -> str:
    """SHA-256 (hex) over names, shapes, dtypes and bytes of all parameters and saved buffers.

    The same wherever the weights lie. A model built without weights is known by name and commit.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        module, _, leaf = name.rpartition(".")
        # Weights that `device_map` has offloaded are brought back one module at a time.
        with align_module_device(model.get_submodule(module)) if tensor.is_meta else nullcontext():
            value = getattr(model.get_submodule(module), leaf) if tensor.is_meta else tensor
            if value.is_meta:
                origin = (model.config.name_or_path, getattr(model.config, "_commit_hash", None))
                digest.update(repr(origin).encode())
                continue
            for part in _parts(value.detach()):
                digest.update(part.contiguous().cpu().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _parts(tensor: Tensor, size: int = 2**24) -> Iterator[Tensor]:
    """A tensor in flat pieces, so that a large one is never copied whole to the CPU."""
    yield from tensor.reshape(-1).split(size)


def _locate(spec: str, revision: str | None) -> tuple[str, dict[str, Any]]:
    """What to give to `from_pretrained`, and the keyword arguments beside it."""
    family, _, stage = spec.removeprefix("miniature/").partition("-")
    if spec.startswith("miniature/"):
        from probes import miniature

        if family not in miniature.FAMILIES or stage not in ("", "base"):
            known = ", ".join(f"miniature/{name}[-base]" for name in miniature.FAMILIES)
            raise InputError(f"{spec} is no miniature; there are {known}")
        path = miniature.folder(family, stage="base" if stage else "aligned")
    elif spec.startswith("realistic/"):
        from probes import realistic

        path = realistic.folder(spec.removeprefix("realistic/"))
    else:
        path = Path(spec).expanduser()
        if not path.exists():
            looks_like_path = spec.startswith((".", "/", "~")) or spec.count("/") != 1
            if looks_like_path and (spec.count("/") or path.suffix):
                raise InputError(f"{spec}: there is no such file or folder")
            return spec, {} if revision is None else {"revision": revision}
    if revision is not None:
        raise InputError(
            f"{spec} lies in this machine's files, where --revision {revision} means nothing; "
            "leave it out, or give a hub id"
        )
    if path.is_file():
        if path.suffix != ".gguf":
            raise InputError(f"{spec} is neither a model's folder nor a .gguf file")
        return str(path.parent), {"gguf_file": path.name}
    if not (path / "config.json").is_file():
        raise InputError(f"{spec} has no config.json: it is not the folder of a transformers model")
    return str(path), {}


def _with_weights(
    spec: str, where: str, dtype: str, device_map: str | None, options: dict[str, Any]
) -> PreTrainedModel:
    if device_map in SPREADS and started() > 1:
        raise InputError(
            f"--device-map {device_map} spreads one model over all cards, but {started()} "
            "processes were started, each with a card of its own: leave it out where the model "
            "fits one card, or start one process, without torchrun"
        )
    if device_map is None and torch.accelerator.is_available():
        device_map = own_device() or "auto"
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        where, dtype=dtype, device_map=device_map, output_loading_info=True, **options
    )
    model, report = loaded
    for fault, names in (
        ("are missing from the checkpoint", report["missing_keys"]),
        ("have another shape in the checkpoint", report["mismatched_keys"]),
    ):
        if names:
            first = ", ".join(sorted(str(name) for name in names)[:3])
            raise InputError(
                f"{spec}: {len(names)} weights {fault} ({first}, ...), so that they would be "
                "random; give a checkpoint that goes with its config.json"
            )
    if dtype == "auto" and model.dtype == torch.float16 and model.device.type == "cpu":
        model = model.float()
    return model


@contextmanager
def _plain_words(spec: str, revision: str | None) -> Iterator[None]:
    """Turn what the libraries raise about a bad model into an InputError."""
    try:
        yield
    except (InputError, torch.OutOfMemoryError):
        raise
    except ImportError as error:
        gguf = spec.endswith(".gguf")
        cure = "pip install gguf" if gguf else "install what it names"
        raise InputError(f"{spec} cannot be loaded: {_first_line(error)}; {cure}") from error
    except SafetensorError as error:
        raise InputError(
            f"{spec}: its weights are damaged ({_first_line(error)}); download them again"
        ) from error
    # The libraries answer bad files with errors of many kinds, struct.error among them.
    except Exception as error:
        at = f" at revision {revision}" if revision is not None else ""
        raise InputError(f"{spec}{at} cannot be loaded: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _check_vocabulary(
    spec: str, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel
) -> None:
    embeddings: Any = model.get_input_embeddings()
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest < 0:
        raise InputError(f"{spec}: its tokenizer has no vocabulary")
    if largest >= embeddings.num_embeddings:
        raise InputError(
            f"{spec}: the tokenizer's ids go up to {largest}, but the model has embeddings for "
            f"{embeddings.num_embeddings} only; give the tokenizer that belongs to the model"
        )


def _read_template(chat_template: str, tokenizer: PreTrainedTokenizerBase) -> str:
    if chat_template == "plain":
        # Base models were trained with BOS before every text, if their tokenizer writes one.
        ids = tokenizer("x").input_ids
        writes_bos = tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]
        return ("{{ bos_token }}" if writes_bos else "") + PLAIN_TEMPLATE
    try:
        return Path(chat_template).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"--chat-template {chat_template} is neither 'plain' nor a Jinja file that can be read "
            f"({error})"
        ) from error
