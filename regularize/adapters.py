"""Load a saved adapter onto the model that it was trained on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open

from probes import miniature
from probes.errors import InputError
from probes.models import ChatModel

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


def attach(chat: ChatModel, folder: Path, *, allow_other_base: bool = False) -> ChatModel:
    """The chat model with a PEFT adapter on it, in evaluation mode.

    Args:
        chat: The base model. Its modules are wrapped in place; `disable_adapter` gives it back.
        folder: What `save_pretrained` wrote: adapter_config.json and adapter_model.safetensors.
        allow_other_base: Go on although the adapter says that it was trained on another model.

    Raises:
        InputError: The adapter is not wholly there, damaged, or another model's.
    """
    describe(chat, folder, allow_other_base=allow_other_base)
    saved = _saved_names(folder)
    try:
        parsed = PeftConfig.from_pretrained(str(folder))
        model = PeftModel.from_pretrained(cast(Any, chat.model), str(folder), config=parsed)
    # PEFT answers bad adapters with errors of many kinds.
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"{folder} does not fit on {chat.name}: {reason}") from error
    wanted = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    # Embeddings are saved where tokens were added, whether or not they were trained.
    strange = {name for name in saved - wanted if "embed" not in name and "lm_head" not in name}
    if wrong := sorted((wanted - saved) | strange):
        raise InputError(
            f"{folder} does not fit on {chat.name}: {len(wrong)} of its weights are missing or "
            f"have no place there, such as {wrong[0]}"
        )
    return replace(chat, model=cast(Any, model.eval()))


def describe(chat: ChatModel, folder: Path, *, allow_other_base: bool = False) -> dict[str, Any]:
    """An adapter's adapter_config.json.

    Raises:
        InputError: See `attach`; whether the weights fit is not looked at.
    """
    config = _config(folder)
    trained_on = str(config.get("base_model_name_or_path") or "a model that it does not name")
    names = {_canonical(chat.name), _canonical(str(chat.model.name_or_path))}
    if _canonical(trained_on) not in names and not allow_other_base:
        raise InputError(
            f"{folder} was trained on {trained_on}, not on {chat.name}; give --model "
            f"{_canonical(trained_on)}, or --allow-other-base to go on all the same"
        )
    return config


def _config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise InputError(f"--adapter {folder}: there is no such folder")
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise InputError(f"--adapter {folder}: there is no {name} in it")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{folder / CONFIG} is not JSON: {error}") from error
    if not isinstance(config, dict) or "peft_type" not in config:
        raise InputError(f"{folder / CONFIG} describes no adapter: it has no peft_type")
    return config


def _saved_names(folder: Path) -> set[str]:
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as tensors:
            return set(tensors.keys())
    except (SafetensorError, OSError) as error:
        raise InputError(f"{folder / WEIGHTS} is damaged ({error}); train it again") from error


def _canonical(name: str) -> str:
    """One name for a model, however it was called: a miniature lies in a different folder anywhere.

    A folder is known by its full path; a hub id by itself.
    """
    path = Path(name).expanduser()
    if path.parts[-4:-2] == miniature.WEIGHTS.parts[-2:]:
        family, stage = path.parts[-2:]
        return f"miniature/{family}" + ("-base" if stage == "base" else "")
    return str(path.resolve()) if path.exists() else name
