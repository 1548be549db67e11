"""A miniature with a frozen probe of its own, fitted in a second."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from probes import models, prompts
from probes.capture import capture
from probes.frozen import FrozenProbe
from probes.models import ChatModel, template_hash, weights_fingerprint
from probes.provenance import ProbeConfig

LAYER = 4


def probed(chat: ChatModel, n: int = 600) -> FrozenProbe:
    """Fitted on some of `miniature:train`."""
    rows = prompts.load("miniature:train").prompts[:n]
    read = capture(chat.model, chat.tokenizer, [r.text for r in rows], layers=[LAYER])[:, 0].numpy()
    fit = LogisticRegression(max_iter=500).fit(read, np.array([row.label for row in rows]))
    probe = frozen(chat, (LAYER,))
    probe.weight.copy_(torch.tensor(fit.coef_))
    probe.bias.fill_(float(fit.intercept_[0]))
    return probe


def frozen(chat: ChatModel, layers: tuple[int, ...], **changes: object) -> FrozenProbe:
    """An empty probe of a model."""
    config = chat.model.config
    about = {
        "base_model": chat.name, "revision": None, "weights": weights_fingerprint(chat.model),
        "template": template_hash(chat.tokenizer), "hook_point": "resid_post",
        "position": "last-input-token", "max_length": None, "n_layers": config.num_hidden_layers,
        "d_model": config.hidden_size, "readout": "layer", "layers": layers, "C": 1.0,
        "train_set": "x", "train_hash": "y", "auroc": None, "threshold_fpr": 0.01,
        "threshold": 0.0, "realised_fpr": 0.0,
    }  # fmt: skip
    return FrozenProbe(ProbeConfig(**(about | changes))).eval()  # type: ignore[arg-type]


def saved(folder: Path, model: str = "miniature/llama") -> Path:
    """The folder of a fitted one."""
    probed(models.load(model, device_map="cpu")).save_pretrained(folder)
    return folder
