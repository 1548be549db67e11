"""Hooks that read while a decoder's blocks run, and end the run after the last that is read."""

from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from probes.blocks import taps
from probes.hooks import Site
from probes.spots import Spots
from probes.tail import OUTPUT, tail

Rows = dict[Site, Float[Tensor, "batch *position d_model"]]


class Enough(Exception):
    """All that was asked for has been read; the later blocks need not run."""


@contextmanager
def reading_rows(
    blocks: nn.ModuleList, sites: Sequence[Site], read: Callable[[Tensor], Tensor], rows: Rows
) -> Iterator[None]:
    """Fill `rows` while the blocks run. The hooks are removed whatever happens.

    Args:
        blocks: The decoder's.
        sites: What to read.
        read: Takes what is wanted of a site's activations at all tokens.
        rows: Is filled.
    """
    handles: list[RemovableHandle] = []
    try:
        _read_at(blocks, sites, read, rows, handles)
        last = max(site.layer for site in sites)
        if last + 1 < len(blocks):
            handles.append(blocks[last + 1].register_forward_pre_hook(_stop))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def reading_packed(
    blocks: nn.ModuleList, sites: Sequence[Site], wanted: Spots, rows: Rows, tails: Container[int]
) -> Iterator[None]:
    """As `reading_rows`, of a packed row. The last block runs for what is read alone, if it can.

    Args:
        blocks: The decoder's.
        sites: What to read.
        wanted: Of which tokens.
        rows: Is filled.
        tails: Blocks that can.
    """
    last = max(site.layer for site in sites)
    at_last = [site for site in dict.fromkeys(sites) if site.layer == last]
    inside = any(site.point != "resid_pre" for site in at_last)
    ends = inside and last in tails
    stop = last + inside
    handles: list[RemovableHandle] = []
    try:
        through = [site for site in sites if not (ends and site.layer == last)]
        _read_at(blocks, through, wanted.of, rows, handles)
        if ends:
            _end(blocks[last], at_last, wanted, rows, handles)
        elif stop < len(blocks):
            handles.append(blocks[stop].register_forward_pre_hook(_stop))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _end(
    block: nn.Module,
    sites: Sequence[Site],
    wanted: Spots,
    rows: Rows,
    handles: list[RemovableHandle],
) -> None:
    """Take a block over once its heads have attended, finish what is read, and run no further."""
    rest = tail(block)
    assert rest is not None
    inputs: list[Tensor] = []

    def keep(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs.append(args[0] if args else kwargs["hidden_states"])

    def finish(_module: nn.Module, args: tuple[Any, ...]) -> None:
        if not inputs:  # called by itself, below
            return
        pre, heads = inputs.pop(), args[0]
        found: dict[Site, list[Tensor]] = {site: [] for site in sites}
        for column in wanted.columns:
            kept, among = column.alone()
            kept = kept.to(pre.device)
            points = rest(pre[:, kept], heads[:, kept])
            for site in sites:
                found[site].append(among.read(points[site.point][0]))
        for site in sites:
            rows[site] = wanted.together(found[site])
        raise Enough

    handles.append(block.register_forward_pre_hook(keep, with_kwargs=True))
    handles.append(block.get_submodule(OUTPUT).register_forward_pre_hook(finish))


def _read_at(
    blocks: nn.ModuleList,
    sites: Sequence[Site],
    read: Callable[[Tensor], Tensor],
    rows: Rows,
    handles: list[RemovableHandle],
) -> None:
    """Have `read` take of each site what it wants, while the blocks run."""
    for site in dict.fromkeys(sites):
        name, side = taps(blocks[site.layer])[site.point]
        module = blocks[site.layer].get_submodule(name)
        if side == "input":
            hook = _on_input(site, read, rows)
            handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        else:
            handles.append(module.register_forward_hook(_on_output(site, read, rows)))


def _on_input(site: Site, read: Callable[[Tensor], Tensor], rows: Rows) -> Callable[..., None]:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        rows[site] = read(args[0] if args else kwargs["hidden_states"])

    return hook


def _on_output(site: Site, read: Callable[[Tensor], Tensor], rows: Rows) -> Callable[..., None]:
    def hook(_module: nn.Module, _args: object, output: Tensor | tuple[Any, ...]) -> None:
        rows[site] = read(output if isinstance(output, Tensor) else output[0])

    return hook


def _stop(_module: nn.Module, _args: object) -> NoReturn:
    raise Enough
