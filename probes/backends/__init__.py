"""Three ways to run a model and read the same activations.

One file a backend; the file's name is the backend's name on the command line.
"""

from collections.abc import Sequence
from importlib import import_module
from typing import Literal, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor, nn

from probes.errors import InputError
from probes.hooks import Site
from probes.packing import Pack

BackendName = Literal["auto", "transformers", "transformer-lens", "nnsight"]


@runtime_checkable
class Backend(Protocol):
    """A model that can be read at hook points."""

    name: str
    """transformers, transformer-lens or nnsight."""
    n_layers: int
    """Number of blocks."""
    d_model: int
    """Width of the residual stream."""

    def capture(
        self,
        ids: Int[Tensor, "batch token"],
        mask: Int[Tensor, "batch token"],
        positions: Int[Tensor, "batch"] | Int[Tensor, "batch position 2"],
        sites: Sequence[Site],
    ) -> Float[Tensor, "batch site *position d_model"]:
        """Read one token of each row at each site, or the means over several spans of tokens.

        Args:
            ids: Token ids, padded on either side with any id.
            mask: 1 at real tokens, 0 at padding.
            positions: Column of the token to read, in each row; or of each span, by row, its first
                column and the one after its last.
            sites: What to read.

        Returns:
            Activations on the CPU, in the model's dtype; with an axis of spans where such were
            given. Means are taken in float32, on the device.

        Raises:
            InputError: A site is none of this model's.
        """
        ...


@runtime_checkable
class PackingBackend(Backend, Protocol):
    """A model that can read many prompts in one row, without padding."""

    @property
    def enough(self) -> int:
        """Tokens of a row beyond which a longer one is no faster."""
        ...

    def packable(self, longest: int) -> int:
        """Which prompts may be packed; to be asked before `capture_packed`.

        Args:
            longest: Length of the longest that may be asked for (tokens).

        Returns:
            Length of the longest that may; 0 for none.
        """
        ...

    def capture_packed(
        self,
        pack: Pack,
        positions: Int[Tensor, "batch"] | Int[Tensor, "batch position 2"],
        sites: Sequence[Site],
    ) -> Float[Tensor, "batch site *position d_model"]:
        """As `Backend.capture`, of packed prompts.

        Args:
            pack: See `probes.packing.pack`.
            positions: As in `Backend.capture`, counted in each prompt's own tokens.
            sites: What to read.
        """
        ...


def open_backend(
    model: object,
    name: BackendName = "auto",
    *,
    remote: bool | Literal["local"] = False,
    revision: str | None = None,
) -> Backend:
    """Wrap a model that is already loaded, without copying or changing its weights.

    Args:
        model: A transformers model, a `TransformerBridge` or an nnsight `LanguageModel`.
        name: What runs it. `auto` is the library that the model belongs to; a transformers model
            can be run by any.
        remote: Run on NDIF's servers (https://ndif.us) instead of here: only for nnsight. The model
            needs no local weights (`probes.models.load(..., weights=False)`), but a key in the
            environment variable NDIF_API_KEY. "local" rehearses that on this machine, without key.
        revision: Hub revision that the servers are to run.

    Raises:
        InputError: The model cannot be run by that backend.
    """
    held = library(model)
    if name == "auto":
        name = held
    if name not in ("transformers", "transformer-lens", "nnsight"):
        raise InputError(f"backend {name!r} is none of: transformers, transformer-lens, nnsight")
    if held not in ("transformers", name):
        raise InputError(
            f"a {type(model).__name__} is run by the backend {held}, not by {name}; "
            f"give the transformers model itself, or leave the backend to 'auto'"
        )
    if remote and name != "nnsight":
        raise InputError(f"remote execution is nnsight's: use --backend nnsight, not {name}")
    if held == "transformers" and name != "transformers" and not remote:
        _require_weights(model, name)
    module = import_module(f"{__name__}.{name.replace('-', '_')}")
    if name == "nnsight":
        return module.open(model, remote=remote, revision=revision)
    return module.open(model)


def _require_weights(model: object, name: str) -> None:
    if isinstance(model, nn.Module) and any(weight.is_meta for weight in model.parameters()):
        raise InputError(
            f"the weights of this {type(model).__name__} are offloaded or were not loaded, which "
            f"{name} cannot run; use the backend transformers, or a --device-map that they fit in"
        )


def library(model: object) -> Literal["transformers", "transformer-lens", "nnsight"]:
    """The library that a model object belongs to, told without importing any.

    Raises:
        InputError: It is none of the three.
    """
    roots = {kind.__module__.partition(".")[0] for kind in type(model).__mro__}
    if "nnsight" in roots:
        return "nnsight"
    if "transformer_lens" in roots:
        return "transformer-lens"
    if isinstance(model, nn.Module):
        return "transformers"
    raise InputError(
        f"{type(model).__name__} is no model that can be read; give a transformers model, "
        "a TransformerBridge or an nnsight LanguageModel"
    )
