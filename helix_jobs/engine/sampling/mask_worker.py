"""MaskWorker: computes masks on a thread of its own, beside the model's pass and within limits. No torch.

A mask is computed in C code that no thread can stop, from a constraint that a stranger wrote. So the engine's thread
waits for it only so long; then the constraint is given up, with the thread that is stuck in it.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

logger = logging.getLogger(__name__)

# Trade-off: a mask takes less than a millisecond, and the library's own limits end one after a second or two. A longer
# limit holds up the whole batch where they fail; with a shorter one a busy machine fails honest constraints.
MASK_SECONDS: Final = 10.0


class MaskJob(Protocol):
    """Masks of one request, to be computed. Never raises."""

    def compute(self) -> None:
        """Compute and keep them."""

    def condemn(self, reason: str) -> None:
        """Give up: ``compute`` does not return, and may hold the request's matcher for ever."""


class MaskWorker:
    """Runs the jobs of a step one after the other. Driven by one thread, the engine's.

    Args:
        seconds: Time for each job.
    """

    def __init__(self, seconds: float = MASK_SECONDS) -> None:
        self._seconds = seconds
        self._round: _Round | None = None
        self._rounds: queue.SimpleQueue[_Round | None] | None = None

    def start(self, jobs: Sequence[MaskJob]) -> None:
        """Begin with the jobs. ``finish`` must be called before anything else touches what they work on."""
        self.finish()
        if jobs:
            self._begin(_Round(list(jobs)))

    def finish(self) -> None:
        """Wait until all jobs have ended, or have been given up. Does nothing if none were started."""
        while (current := self._round) is not None:
            if current.wait(self._seconds):
                self._round = None
                return
            stuck, remaining = current.give_up()
            logger.warning("a constraint's mask is not done after %g s; the constraint is given up", self._seconds)
            stuck.condemn(f"the constraint takes more than {self._seconds:g} s for one token; simplify it")
            self._round = self._rounds = None
            if remaining:
                self._begin(_Round(remaining))

    def run(self, job: MaskJob) -> None:
        """Run one job and wait for it."""
        self.start([job])
        self.finish()

    def close(self) -> None:
        """End the thread."""
        self.finish()
        if self._rounds is not None:
            self._rounds.put(None)
            self._rounds = None

    def _begin(self, one: _Round) -> None:
        if self._rounds is None:
            self._rounds = queue.SimpleQueue()
            # A daemon: a thread that is stuck must not keep the process alive.
            threading.Thread(target=_work, args=(self._rounds,), name="helix-masks", daemon=True).start()
        self._round = one
        self._rounds.put(one)


class _Round:
    """The jobs of one ``start``, shared by the two threads."""

    def __init__(self, jobs: list[MaskJob]) -> None:
        self._jobs = jobs
        self._done = threading.Event()
        self._place = 0
        self._began = time.monotonic()

    def work(self) -> None:
        for place, job in enumerate(self._jobs):
            self._place, self._began = place, time.monotonic()
            try:
                job.compute()
            except Exception:
                logger.exception("a mask cannot be computed")
                job.condemn("the constraint's mask cannot be computed; the worker's log has more")
        self._done.set()

    def wait(self, seconds: float) -> bool:
        """Wait while each job takes less than ``seconds``; whether all have ended."""
        while not self._done.wait(max(0.001, self._began + seconds - time.monotonic())):
            if time.monotonic() >= self._began + seconds:
                return False
        return True

    def give_up(self) -> tuple[MaskJob, list[MaskJob]]:
        """The job that does not end, and those behind it."""
        place = self._place
        return self._jobs[place], self._jobs[place + 1 :]


def _work(rounds: queue.SimpleQueue[_Round | None]) -> None:
    while (one := rounds.get()) is not None:
        one.work()
