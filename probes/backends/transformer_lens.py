"""The same activations through TransformerLens 4, whose `TransformerBridge` wraps a loaded model.

TransformerLens names are the hook points' own, so that what is asked for is passed on as it is.
"""

import copy
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import chain
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from probes.backends.transformers import read
from probes.blocks import blocks, position_ids, reading
from probes.edits import Edit, Step
from probes.errors import InputError
from probes.hooks import ORDER, Site, check_sites


class _Enough(Exception):
    """All that was asked for has been read: neither later blocks nor the head need run."""


class TransformerLensBackend:
    """Reads a `TransformerBridge` through its hooks."""

    name = "transformer-lens"

    def __init__(self, bridge: Any):
        self.bridge = bridge
        self.n_layers: int = bridge.cfg.n_layers
        self.d_model: int = bridge.cfg.d_model

    def capture(
        self,
        ids: Int[Tensor, "batch token"],
        mask: Int[Tensor, "batch token"],
        positions: Int[Tensor, "batch"] | Int[Tensor, "batch position 2"],
        sites: Sequence[Site],
    ) -> Float[Tensor, "batch site *position d_model"]:
        """See `probes.backends.Backend.capture`."""
        check_sites(sites, self.n_layers)
        for site in sites:
            if site.name not in self.bridge.hook_dict:
                known = [p for p in ORDER if Site(p, site.layer).name in self.bridge.hook_dict]
                raise InputError(
                    f"TransformerLens has no {site.point} in {self.bridge.cfg.model_name}; "
                    f"available: {', '.join(known)}"
                )
        rows: dict[Site, Tensor] = {}
        last = max(sites, key=lambda site: site.order)
        hooks = [(site.name, _keep(site, positions, rows, last)) for site in dict.fromkeys(sites)]
        # The device of the embedding, which is where a model spread over several begins.
        device = torch.device(self.bridge.cfg.device)
        mask = mask.to(device)
        with reading(self.bridge), suppress(_Enough):
            # Positions are given outright: TransformerBridge has derived them wrongly under left
            # padding (TransformerLens #1609).
            self.bridge.run_with_hooks(
                ids.to(device),
                attention_mask=mask,
                position_ids=position_ids(mask),
                fwd_hooks=hooks,
                return_type=None,
            )
        return torch.stack([rows[site].cpu() for site in sites], dim=1)

    def predict(
        self,
        ids: Int[Tensor, "batch new"],
        mask: Int[Tensor, "batch token"],
        positions: Int[Tensor, "batch new"],
        past: Any,
        edits: Sequence[Edit],
    ) -> Step:
        """See `probes.edits.EditingBackend.predict`."""
        device = torch.device(self.bridge.cfg.device)
        with reading(self.bridge):
            logits, past = self.bridge.run_with_hooks(
                ids.to(device),
                attention_mask=mask.to(device),
                position_ids=positions.to(device),
                past_key_values=past,
                use_cache=True,
                logits_to_keep=1,
                fwd_hooks=[(Site("resid_post", edit.layer).name, _change(edit)) for edit in edits],
                return_type="logits_and_cache",
            )
        return Step(logits[:, -1], past)


def open(model: Any) -> TransformerLensBackend:
    """Wrap a `TransformerBridge` as it is, or a transformers model in a new one.

    A bridge builds its wrappers into the model; a transformers model is therefore bridged as a
    copy of its modules that shares the weights, and stays as it is.
    """
    from transformer_lens.model_bridge import TransformerBridge
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    if isinstance(model, TransformerBridge):
        return TransformerLensBackend(model)
    blocks(model)
    try:
        bridge = build_bridge_from_module(
            _sharing_weights(model), type(model).__name__, hf_config=model.config
        )
    except (ValueError, NotImplementedError) as error:
        raise InputError(
            f"TransformerLens cannot wrap {type(model).__name__}: {error}; use the backend "
            "transformers or nnsight"
        ) from error
    return TransformerLensBackend(bridge)


def _sharing_weights(model: nn.Module) -> nn.Module:
    weights = chain(model.parameters(), model.buffers())
    return copy.deepcopy(model, {id(tensor): tensor for tensor in weights})


def _change(edit: Edit) -> Callable[..., Tensor]:
    def hook(hidden: Tensor, hook: object) -> Tensor:  # noqa: ARG001
        return edit(hidden)

    return hook


def _keep(
    site: Site, positions: Tensor, rows: dict[Site, Tensor], last: Site
) -> Callable[..., None]:
    def hook(hidden: Tensor, hook: object) -> None:  # noqa: ARG001
        rows[site] = read(hidden, positions)
        if site == last:
            raise _Enough

    return hook
