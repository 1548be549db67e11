"""Which activations of a decoder block are read, under TransformerLens names, and of which tokens.

    resid_pre -> [norm, attention] = attn_out -> resid_mid -> [norm, MLP] = mlp_out -> resid_post

`resid_mid = resid_pre + attn_out` and `resid_post = resid_mid + mlp_out`. Layer l is block l,
0..n_layers-1; the embedding is `resid_pre` of block 0. Which tokens of a chat a position names is
found by `probes.positions`.
"""

import re
from collections.abc import Iterable
from typing import Literal, NamedTuple, cast, get_args

from probes.errors import InputError

HookPoint = Literal["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"]
HOOK_POINTS: tuple[HookPoint, ...] = get_args(HookPoint)

Position = Literal["last-input-token", "last-content-token", "post-instruction", "content-mean"]
POSITIONS: tuple[Position, ...] = get_args(Position)
LAST: Position = "last-input-token"

# In the order in which a block computes them.
ORDER: tuple[HookPoint, ...] = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")


class Site(NamedTuple):
    """One hook point of one block."""

    point: HookPoint
    layer: int

    @property
    def name(self) -> str:
        """TransformerLens's name, `blocks.{layer}.hook_{point}`."""
        return f"blocks.{self.layer}.hook_{self.point}"

    @property
    def order(self) -> tuple[int, int]:
        """Sorts sites as the model computes them."""
        return self.layer, ORDER.index(self.point)

    @classmethod
    def parse(cls, name: str) -> "Site":
        """The site of a TransformerLens name; `Site.parse(site.name) == site`.

        Raises:
            InputError: The name is not of that form.
        """
        match = re.fullmatch(r"blocks\.(\d+)\.hook_(\w+)", name)
        if match is None or match[2] not in HOOK_POINTS:
            raise InputError(
                f"{name!r} is no hook point; write blocks.LAYER.hook_POINT "
                f"with POINT one of {', '.join(HOOK_POINTS)}"
            )
        return cls(cast(HookPoint, match[2]), int(match[1]))


EMBEDDING = Site("resid_pre", 0)


def sites(point: str, layers: Iterable[int]) -> tuple[Site, ...]:
    """The same hook point of several blocks.

    Raises:
        InputError: There is no hook point of that name.
    """
    if point not in HOOK_POINTS:
        raise InputError(f"{point!r} is no hook point; choose from {', '.join(HOOK_POINTS)}")
    return tuple(Site(point, layer) for layer in layers)


def check_sites(sites: Iterable[Site], n_layers: int) -> None:
    """Refuse what no model of `n_layers` blocks has.

    Raises:
        InputError: An unknown hook point, a layer out of range, or no site at all.
    """
    sites = tuple(sites)
    if not sites:
        raise InputError("no layer to read was given")
    for site in sites:
        if site.point not in HOOK_POINTS:
            raise InputError(
                f"{site.point!r} is no hook point; choose from {', '.join(HOOK_POINTS)}"
            )
        if not 0 <= site.layer < n_layers:
            raise InputError(f"layer {site.layer} does not exist: the model has 0..{n_layers - 1}")


def check_position(position: str) -> Position:
    """The position of that name.

    Raises:
        InputError: There is none.
    """
    if position not in POSITIONS:
        raise InputError(f"{position!r} is no position; choose from {', '.join(POSITIONS)}")
    return position
