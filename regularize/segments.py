"""A training that goes on for some steps at a time, so that several can take turns.

It is `Trainer.train` itself, in a thread that waits between the segments: what is timed from
outside is all that a step does, from the fetching of its rows to its log.
"""

from __future__ import annotations

from threading import Semaphore, Thread
from typing import TYPE_CHECKING, Any

import torch
from transformers.trainer_callback import TrainerCallback

if TYPE_CHECKING:
    from transformers import Trainer


class Segments:
    """Wait between the steps of a trainer."""

    def __init__(self, trainer: Trainer) -> None:
        """Begin nothing yet.

        Args:
            trainer: Ready to train. Its steps are those of its arguments.
        """
        self.trainer = trainer
        self._left = 0
        self._may, self._has = Semaphore(0), Semaphore(0)
        self._ended: BaseException | bool = False
        self._abandoned = False
        self._thread = Thread(target=self._train, daemon=True)
        trainer.add_callback(_Stop(self))

    def go(self, steps: int) -> None:
        """Do so many steps, or what is left of them.

        Raises:
            Exception: What the training has raised, now or before.
        """
        self._left = steps
        self._go()

    def finish(self) -> None:
        """Do all steps that are left, and what follows them; then `train` has returned."""
        self._left = -1
        while not self._ended:
            self._go()

    def abandon(self) -> None:
        """End it after its next step, as if it were finished."""
        self._abandoned = True
        self.finish()

    def _go(self) -> None:
        if not self._ended:
            if self._thread.ident is None:
                self._thread.start()
            else:
                self._may.release()
            self._has.acquire()
        if isinstance(self._ended, BaseException):
            raise self._ended

    def _train(self) -> None:
        try:
            self.trainer.train()
            self._ended = True
        except BaseException as error:  # it belongs to who waits
            self._ended = error
        finally:
            _wait_for_device()
            self._has.release()

    def stop(self) -> bool:
        """After a step: wait if the segment is done. Whether training is to end."""
        self._left -= 1
        if self._left == 0:
            _wait_for_device()
            self._has.release()
            self._may.acquire()
        return self._abandoned


class _Stop(TrainerCallback):
    def __init__(self, segments: Segments) -> None:
        self._segments = segments

    def on_step_end(self, args: Any, state: Any, control: Any, **options: Any) -> None:  # noqa: ARG002
        if self._segments.stop():
            control.should_training_stop = True


def _wait_for_device() -> None:
    """What was begun on an accelerator is done."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
