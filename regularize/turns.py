"""The order of rows in a training whose optimizer steps take turns between two data sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

from torch.utils.data import Sampler

from regularize.defences import Turn


class Turns(Sampler[int]):
    """Each optimizer step's rows from one of two data sets, each gone through again and again.

    An epoch has as many steps as the users' rows alone would make: what the safe data take is
    taken from them. The order follows from seed and epoch, so that a resumed run has the same.
    """

    def __init__(
        self, n_user: int, n_safe: int, *, step: int, turn: Callable[[int], Turn], seed: int
    ) -> None:
        """Take turns between the rows 0 to n_user - 1 and the n_safe rows that follow.

        Args:
            n_user: Rows that are not trusted.
            n_safe: Rows of the safe data.
            step: Rows of an optimizer step, over all micro-batches and processes.
            turn: Whose turn it is, by the step's number from 0 on.
            seed: Of both orders.
        """
        self._sizes: dict[Turn, int] = {"user": n_user, "safe": n_safe}
        self._first: dict[Turn, int] = {"user": 0, "safe": n_user}
        self._step, self._turn, self._seed = step, turn, seed
        self._epoch = 0
        self._orders: dict[Turn, tuple[int, list[int]]] = {}

    def set_epoch(self, epoch: int) -> None:
        """Go on to an epoch: accelerate says so."""
        self._epoch = epoch

    def __len__(self) -> int:
        """Rows of an epoch."""
        return self._sizes["user"]

    def __iter__(self) -> Iterator[int]:
        """The epoch's rows."""
        sizes = [min(self._step, len(self) - start) for start in range(0, len(self), self._step)]
        drawn: dict[Turn, int] = {"user": 0, "safe": 0}
        for epoch in range(self._epoch + 1):
            for number, size in enumerate(sizes):
                turn = self._turn(epoch * len(sizes) + number)
                if epoch == self._epoch:
                    yield from (self._row(turn, drawn[turn] + i) for i in range(size))
                drawn[turn] += size

    def _row(self, turn: Turn, i: int) -> int:
        """The `i`-th row that a data set gives."""
        passage, place = divmod(i, self._sizes[turn])
        if self._orders.get(turn, (-1,))[0] != passage:
            order = list(range(self._sizes[turn]))
            Random(f"{self._seed}/{turn}/{passage}").shuffle(order)
            self._orders[turn] = passage, order
        return self._first[turn] + self._orders[turn][1][place]
