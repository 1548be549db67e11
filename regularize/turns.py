"""The order of rows in a training whose optimizer steps take turns between two data sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

from torch.utils.data import Sampler

from regularize.defences import Turn


class Turns(Sampler[int]):
    """Each optimizer step's rows from one of two data sets, each gone through again and again.

    An epoch has as many steps as the users' rows alone would make: what the safe data take is
    taken from them, and put off. The order follows from the seed and the number of steps that are
    done, so that a resumed run has the same.
    """

    def __init__(
        self,
        n_user: int,
        n_safe: int,
        *,
        rows: int,
        step: int,
        turn: Callable[[int], Turn],
        done: Callable[[], int],
        seed: int,
    ) -> None:
        """Take turns between the rows 0 to n_user - 1 and the n_safe rows that follow.

        Args:
            n_user: Rows that are not trusted.
            n_safe: Rows of the safe data.
            rows: Of an epoch.
            step: Rows of an optimizer step, over all micro-batches and processes; the last one of
                an epoch has what is left.
            turn: Whose turn it is, by the step's number from 0 on.
            done: How many steps are done when an epoch begins, or goes on: accelerate does not
                tell a sampler the epoch in every case (several processes, resumed).
            seed: Of both orders.
        """
        self._sizes: dict[Turn, int] = {"user": n_user, "safe": n_safe}
        self._first: dict[Turn, int] = {"user": 0, "safe": n_user}
        self._rows, self._step = rows, step
        self._turn, self._done, self._seed = turn, done, seed
        self._orders: dict[Turn, tuple[int, list[int]]] = {}

    def __len__(self) -> int:
        """Rows of an epoch."""
        return self._rows

    def __iter__(self) -> Iterator[int]:
        """The epoch's rows, from its first step on."""
        sizes = [min(self._step, self._rows - start) for start in range(0, self._rows, self._step)]
        drawn: dict[Turn, int] = {"user": 0, "safe": 0}
        now = self._done() // len(sizes)
        for epoch in range(now + 1):
            for number, size in enumerate(sizes):
                turn = self._turn(epoch * len(sizes) + number)
                if epoch == now:
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
