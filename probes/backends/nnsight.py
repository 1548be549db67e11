"""The same activations through nnsight, here or on NDIF's servers.

With `remote` nothing of the model's weights is needed on this machine: nnsight sends the few lines
under `with ... .trace(...)` to https://ndif.us, which runs them in a model that it has loaded, and
only the rows that are read come back. NDIF wants a key, in the environment variable NDIF_API_KEY,
and must have the model: https://nnsight.net/status.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import reduce
from types import ModuleType
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import AutoTokenizer

from probes.backends.transformers import TransformersBackend, columns
from probes.blocks import blocks, input_device, position_ids, reading, taps
from probes.edits import Edit, Step
from probes.errors import InputError
from probes.hooks import Site, check_sites


class NnsightBackend:
    """Reads a model that nnsight has wrapped."""

    name = "nnsight"

    def __init__(self, wrapped: Any, remote: bool | Literal["local"] = False):
        if not remote and not getattr(wrapped, "dispatched", True):
            wrapped.dispatch()  # nnsight puts off loading the weights
        self.wrapped = wrapped
        self.module = wrapped._module
        self.remote = remote
        self.local = TransformersBackend(self.module)
        self.n_layers = self.local.n_layers
        self.d_model = self.local.d_model

    def capture(
        self,
        ids: Int[Tensor, "batch token"],
        mask: Int[Tensor, "batch token"],
        positions: Int[Tensor, "batch"] | Int[Tensor, "batch position 2"],
        sites: Sequence[Site],
    ) -> Float[Tensor, "batch site *position d_model"]:
        """See `probes.backends.Backend.capture`."""
        import nnsight

        check_sites(sites, self.n_layers)
        if not self.remote:
            self.local.check(sites)
        # nnsight hands out values in the order in which the model computes them.
        ordered = sorted(set(sites), key=lambda site: site.order)
        read = [self._value(site) for site in ordered]
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": position_ids(mask)}
        if not self.remote:
            device = input_device(self.module)
            inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
        where = {"remote": self.remote} if self.remote else {}
        batch = torch.arange(len(ids))[:, None]
        single = positions.ndim == 1
        spans = torch.stack([positions, positions + 1], dim=-1)[:, None] if single else positions
        picked = [columns(one) for one in spans.unbind(1)]
        quiet = nullcontext() if self.remote else reading(self.module)
        # The inner block, which must be a `with` of its own, is what nnsight sends to the server:
        # plain objects and torch only.
        with quiet, _by_reference(), _plain_words(self.remote):  # noqa: SIM117
            with self.wrapped.trace(**inputs, use_cache=False, **where) as tracer:
                rows = nnsight.save([])  # the list too must be saved, not its items alone
                for module, side in read:
                    hidden = module.input if side == "input" else module.output
                    hidden = hidden[0] if isinstance(hidden, tuple) else hidden
                    # As `probes.backends.transformers.read` does.
                    for at, beyond in picked:
                        tokens = hidden[batch.to(hidden.device), at.to(hidden.device)]
                        if at.shape[1] > 1:
                            none = beyond.to(hidden.device)[..., None]
                            total = tokens.float().masked_fill(none, 0).sum(1, keepdim=True)
                            mean = total / (~none).sum(1, keepdim=True)
                            tokens = mean.to(hidden.dtype)
                        rows.append(tokens[:, 0].cpu())
                tracer.stop()
        by_site = torch.stack(list(rows), dim=1).unflatten(1, (len(ordered), len(picked)))
        captured = by_site[:, [ordered.index(site) for site in sites]]
        return captured[:, :, 0] if single else captured

    def predict(
        self,
        ids: Int[Tensor, "batch new"],
        mask: Int[Tensor, "batch token"],
        positions: Int[Tensor, "batch new"],
        past: Any,
        edits: Sequence[Edit],
    ) -> Step:
        """See `probes.edits.EditingBackend.predict`.

        Raises:
            InputError: The model is not on this machine.
        """
        import nnsight

        if self.remote:
            raise InputError(
                "a model is changed on this machine only: leave out --remote, and give its weights"
            )
        device = input_device(self.module)
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
        changed = [(self._value(Site("resid_post", edit.layer))[0], edit) for edit in edits]
        with reading(self.module):  # noqa: SIM117
            with self.wrapped.trace(
                **inputs, past_key_values=past, use_cache=True, logits_to_keep=1
            ):
                for block, edit in changed:
                    hidden = block.output
                    if isinstance(hidden, tuple):
                        block.output = (edit(hidden[0]), *hidden[1:])
                    else:
                        block.output = edit(hidden)
                output = nnsight.save(self.wrapped.output)
        return Step(output.logits[:, -1], output.past_key_values)

    def _value(self, site: Site) -> tuple[Any, str]:
        """Nnsight's view of the submodule that a site is read at, and the side."""
        layers = blocks(self.module)
        path = next(name for name, module in self.module.named_modules() if module is layers)
        tap = taps(layers[site.layer])[site.point]
        block = reduce(getattr, path.split("."), self.wrapped)[site.layer]
        return reduce(getattr, tap.module.split("."), block) if tap.module else block, tap.side


def open(
    model: Any, *, remote: bool | Literal["local"] = False, revision: str | None = None
) -> NnsightBackend:
    """Wrap a transformers model, or take what nnsight has wrapped already. It is left as it is.

    Raises:
        InputError: The model was wrapped without a name, so that no server can know it.
    """
    import nnsight

    if isinstance(model, nnsight.Envoy):
        if remote and not hasattr(model, "to_model_key"):
            raise InputError(
                "a model wrapped with NNsight() has no name that NDIF could know it by; for remote "
                "execution wrap a hub id with nnsight's LanguageModel"
            )
        return NnsightBackend(model, remote)
    if not remote:
        return NnsightBackend(nnsight.NNsight(model))
    hub_id = model.config.name_or_path
    # A tokenizer of its own, for nnsight changes its padding; left to itself it finds none for a
    # model without weights (nnsight 0.8.1 under transformers 5.23).
    tokenizer = AutoTokenizer.from_pretrained(hub_id, revision=revision)
    wrapped = nnsight.TransformersModel(
        hub_id, revision=revision, task="text-generation", tokenizer=tokenizer
    )
    return NnsightBackend(wrapped, remote)


@contextmanager
def _plain_words(remote: bool | str) -> Iterator[None]:
    """A remote run fails for reasons that one can mend: no key, no network, no such model."""
    try:
        yield
    except Exception as error:
        if not remote:
            raise
        raise InputError(
            f"NDIF did not run the model: {error}; see that NDIF_API_KEY is set and that "
            "https://nnsight.net/status lists the model, or run without --remote"
        ) from error


@contextmanager
def _by_reference() -> Iterator[None]:
    """Afterwards this process's own modules are pickled as before.

    For a remote run nnsight has cloudpickle send them by value, from then on and to everybody:
    joblib's processes, which import them themselves, would get copies, or fail to.
    """
    from cloudpickle import list_registry_pickle_by_value, unregister_pickle_by_value

    before = list_registry_pickle_by_value()
    try:
        yield
    finally:
        for name in list_registry_pickle_by_value() - before:
            unregister_pickle_by_value(ModuleType(name))
