"""The default backend: forward hooks on a transformers model.

The decoder runs without its head and without a key-value cache. Each hook copies the one row that
is wanted, or takes the means over some, on the device of its own layer, so that a full sequence
lives no longer than its block; the run ends after the last block that is asked for. Packed prompts
(`probes.packing`) end within it: what follows its attention is computed of read tokens alone.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from probes.attention import Plan, attending
from probes.blocks import blocks, decoder, input_device, position_ids, reading, taps
from probes.edits import Edit, Step
from probes.errors import InputError
from probes.hooks import ORDER, HookPoint, Site, check_sites
from probes.packable import packable
from probes.packing import Pack
from probes.spots import spots
from probes.tapping import Enough, Rows, reading_packed, reading_rows

# Tokens that fill a CPU: of larger passes the intermediates leave its cache.
ENOUGH = 1024


class TransformersBackend:
    """Reads a transformers model through PyTorch's own hooks."""

    name = "transformers"

    def __init__(self, model: nn.Module):
        self.model = model
        self.decoder = decoder(model)
        self.blocks = blocks(model)
        self.n_layers = len(self.blocks)
        self.d_model: int = self.decoder.config.get_text_config().hidden_size  # type: ignore[operator,union-attr]
        self._sound: frozenset[HookPoint] | None = None
        self._tails: frozenset[int] = frozenset()

    def capture(
        self,
        ids: Int[Tensor, "batch token"],
        mask: Int[Tensor, "batch token"],
        positions: Int[Tensor, "batch"] | Int[Tensor, "batch position 2"],
        sites: Sequence[Site],
    ) -> Float[Tensor, "batch site *position d_model"]:
        """See `probes.backends.Backend.capture`."""
        self.check(sites)
        rows = self._run(ids, mask, positions, sites)
        return torch.stack([rows[site].cpu() for site in sites], dim=1)

    def packable(self, longest: int) -> int:
        """See `probes.backends.PackingBackend.packable`."""
        found = packable(self.decoder, longest)
        self._tails = found.tails
        return found.limit

    @property
    def enough(self) -> int:
        """See `probes.backends.PackingBackend.enough`."""
        return ENOUGH if input_device(self.decoder).type == "cpu" else sys.maxsize

    def capture_packed(
        self,
        pack: Pack,
        positions: Int[Tensor, "batch"] | Int[Tensor, "batch position 2"],
        sites: Sequence[Site],
    ) -> Float[Tensor, "batch site *position d_model"]:
        """See `probes.backends.PackingBackend.capture_packed`."""
        self.check(sites)
        device = input_device(self.decoder)
        rows: Rows = {}
        read = spots(pack, positions)
        hooked = reading_packed(self.blocks, sites, read, rows, self._tails)
        plan = Plan(pack, loop=device.type == "cpu")
        with reading(self.decoder), attending(self.decoder, plan), hooked, suppress(Enough):
            self.decoder(
                input_ids=pack.ids[None].to(device),
                attention_mask=torch.ones_like(pack.ids)[None].to(device),
                position_ids=pack.positions[None].to(device),
                use_cache=False,
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
        device = input_device(self.model)
        with reading(self.model), _editing(self.blocks, edits):
            output = self.model(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                position_ids=positions.to(device),
                past_key_values=past,
                use_cache=True,
                logits_to_keep=1,
            )
        return Step(output.logits[:, -1], output.past_key_values)

    def check(self, sites: Sequence[Site]) -> None:
        """Refuse sites that this model does not have.

        Raises:
            InputError: Such as `attn_out` of an architecture whose blocks add something else.
        """
        check_sites(sites, self.n_layers)
        asked = {site.point for site in sites}
        if asked <= {"resid_pre", "resid_post"}:
            return
        if self._sound is None:
            self._sound = self._sound_points()
        if missing := asked - self._sound:
            raise InputError(
                f"{', '.join(sorted(missing))} cannot be found in {type(self.model).__name__}; "
                f"available: {', '.join(sorted(self._sound))}"
            )

    def _sound_points(self) -> frozenset[HookPoint]:
        """The hook points that add up in every block, on a few tokens.

        Names promise little: a block may scale what it adds, or run attention and MLP in parallel.
        resid_pre + attn_out = resid_mid and resid_mid + mlp_out = resid_post settle it.
        """
        outer: frozenset[HookPoint] = frozenset({"resid_pre", "resid_post"})
        if any(len(taps(block)) < len(ORDER) for block in self.blocks):
            return outer
        every = [Site(point, layer) for layer in range(self.n_layers) for point in ORDER]
        ids = torch.arange(1, 5).unsqueeze(0)
        rows = self._run(ids, torch.ones_like(ids), torch.tensor([3]), every)
        for layer in range(self.n_layers):
            pre, attn, mid, mlp, post = (rows[Site(point, layer)].double().cpu() for point in ORDER)
            # The sums are rounded to the model's dtype, at worst to 8 bits.
            for total, parts in ((mid, pre + attn), (post, mid + mlp)):
                if not torch.allclose(total, parts, rtol=0, atol=1e-2 * float(total.abs().max())):
                    return outer
        return frozenset(ORDER)

    def _run(self, ids: Tensor, mask: Tensor, positions: Tensor, sites: Sequence[Site]) -> Rows:
        device = input_device(self.decoder)
        mask = mask.to(device)
        rows: Rows = {}
        hooked = reading_rows(self.blocks, sites, lambda hidden: read(hidden, positions), rows)
        with reading(self.decoder), hooked, suppress(Enough):
            self.decoder(
                input_ids=ids.to(device),
                attention_mask=mask,
                position_ids=position_ids(mask),
                use_cache=False,
            )
        return rows


def open(model: nn.Module) -> TransformersBackend:
    """Wrap a transformers model. It is left as it is."""
    return TransformersBackend(model)


@contextmanager
def _editing(blocks: nn.ModuleList, edits: Sequence[Edit]) -> Iterator[None]:
    """Change what blocks give while the model runs. The hooks are removed whatever happens."""
    handles = []
    try:
        for edit in edits:
            handles.append(blocks[edit.layer].register_forward_hook(_change(edit)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _change(edit: Edit) -> Callable[..., Tensor | tuple[Any, ...]]:
    def hook(
        _module: nn.Module, _args: object, output: Tensor | tuple[Any, ...]
    ) -> Tensor | tuple[Any, ...]:
        return edit(output) if isinstance(output, Tensor) else (edit(output[0]), *output[1:])

    return hook


def read(
    hidden: Float[Tensor, "batch token d_model"],
    positions: Int[Tensor, "batch"] | Int[Tensor, "batch position 2"],
) -> Float[Tensor, "batch *position d_model"]:
    """What `Backend.capture` keeps of a full sequence: a token of each row, or means over spans."""
    if positions.ndim == 1:
        return gather(hidden, positions)
    means = [_mean(hidden, *columns(spans)) for spans in positions.unbind(1)]
    return torch.stack(means, dim=1)


def columns(
    spans: Int[Tensor, "batch 2"],
) -> tuple[Int[Tensor, "batch width"], Bool[Tensor, "batch width"]]:
    """The columns of each row's span, as many as the longest has, and which are too many."""
    start, stop = spans[:, :1], spans[:, 1:]
    wanted = start + torch.arange(int((stop - start).max()), device=spans.device)
    return torch.minimum(wanted, stop - 1), wanted >= stop


def _mean(
    hidden: Float[Tensor, "batch token d_model"],
    columns: Int[Tensor, "batch width"],
    beyond: Bool[Tensor, "batch width"],
) -> Float[Tensor, "batch d_model"]:
    """(sum over t of h_t) / n over each row's span, summed in float32; of one token its copy."""
    if columns.shape[1] == 1:
        return gather(hidden, columns[:, 0])
    rows = torch.arange(len(hidden), device=hidden.device)[:, None]
    beyond = beyond.to(hidden.device)[..., None]
    # Padding is never read: what a model computes there may be NaN, which no weight of 0 mends.
    tokens = hidden[rows, columns.to(hidden.device)].float().masked_fill_(beyond, 0)
    return (tokens.sum(1) / (~beyond).sum(1)).to(hidden.dtype)


def gather(
    hidden: Float[Tensor, "batch token d_model"], positions: Int[Tensor, "batch"]
) -> Float[Tensor, "batch d_model"]:
    """Copy one token of each row, on the device where they are.

    Indexing with tensors copies; a slice would be a view that keeps the whole sequence alive.
    """
    rows = torch.arange(len(hidden), device=hidden.device)
    return hidden[rows, positions.to(hidden.device)]
