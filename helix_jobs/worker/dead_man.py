"""DeadMansSwitch: the end of waits that have none.

Every part of a worker that waits for something has a time limit of its own: statements, answers of the broker, engine
steps. This is for the wait that nobody thought of. Each loop of the worker notes when it comes round (``Rounds``). When
one has not for a minute, the sockets of calls to the database that are out for so long are closed, which ends the wait
with an error and is tried again. When it has not for two, the process ends with exit code 1, for its supervisor to
start a new one; what it held is reclaimed.

The thread that does this touches memory only. It reads no file, asks no service, takes no lock that a waiting thread
may hold, and does not even log by itself. Long honest work is no silence: the models are loaded before it starts, an
engine step has a longer limit, and time in which this thread did not run either (the machine suspended, the process
stopped, the processor taken away) is not counted. A round that asks database or broker for many answers is none
either, however slow each of them is: each counts as a round (``rounds.come_round``), and each has a limit far below
this one.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import FrameType

    from helix_jobs.observability.rounds import Rounds
    from helix_jobs.storage.calls_in_flight import CallsInFlight

logger = logging.getLogger(__name__)

LOOK_SECONDS: Final = 1.0
# How long a last word may take to get into the log.
SAY_SECONDS: Final = 2.0
_FRAMES: Final = 6


@dataclass(frozen=True, slots=True)
class Silence:
    """How long a loop has been seen at the same round."""

    rounds: int
    seconds: float = 0.0


def observe(previous: Mapping[str, Silence], counts: Mapping[str, int], elapsed: float) -> dict[str, Silence]:
    """Add one look at the loops.

    Args:
        previous: What was known.
        counts: Loop -> rounds now; a loop that has ended is not in it.
        elapsed: Seconds since the previous look that count as watched.
    """
    return {
        name: replace(previous[name], seconds=previous[name].seconds + elapsed)
        if name in previous and previous[name].rounds == rounds
        else Silence(rounds)
        for name, rounds in counts.items()
    }


@dataclass(frozen=True, slots=True)
class Limit:
    """How long a loop may be silent, and what is called then with the reason: once, and it must not wait."""

    seconds: float
    act: Callable[[str], None]


class DeadMansSwitch:
    """Looks at the loops every second, on a thread that waits for nothing else.

    Args:
        rounds: Of the loops.
        calls: The calls that can be closed.
        close: Seconds after which they are.
        limit: Of every loop.
        limits: Of loops that have another one.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        rounds: Rounds,
        calls: Sequence[CallsInFlight],
        *,
        close: float,
        limit: Limit,
        limits: Mapping[str, Limit],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rounds = rounds
        self._calls = calls
        self._close = close
        self._limit = limit
        self._limits = limits
        self._clock = clock
        self._silences: dict[str, Silence] = {}
        self._looked_at: float | None = None
        self._watched = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._main, name="helix-dead-man", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def look(self) -> None:
        """Look once and act on it."""
        if self._stop.is_set():
            return
        now = self._clock()
        gap = 0.0 if self._looked_at is None else now - self._looked_at
        self._looked_at = now
        elapsed = min(gap, 2 * LOOK_SECONDS)
        # Calls are timed by the clock alone: after a gap, give them the time to be answered that they had before it.
        self._watched = 0.0 if elapsed < gap else self._watched + elapsed
        self._silences = observe(self._silences, self._rounds.counts(), elapsed)
        if self._watched >= self._close:
            closed = sum(calls.close_overdue(self._close) for calls in self._calls)
            if closed:
                say(f"closed {closed} connections to the database: no answer for {self._close:.0f} s")
        for name, silence in self._silences.items():
            limit = self._limits.get(name, self._limit)
            if silence.seconds >= limit.seconds:
                self._stop.set()
                limit.act(f"the {name} has not come round for {silence.seconds:.0f} s")
                return

    def _main(self) -> None:
        while not self._stop.wait(LOOK_SECONDS):
            try:
                self.look()
            except Exception as error:  # noqa: BLE001  (nobody else would notice what this thread notices)
                say(f"the dead man's switch failed: {type(error).__name__}")


def say(message: str) -> None:
    """Log it, on a thread of its own: whoever holds the log's lock may be what hangs."""
    speaker = threading.Thread(target=logger.critical, args=(message,), name="helix-last-word", daemon=True)
    with suppress(RuntimeError):  # no more threads
        speaker.start()
        speaker.join(SAY_SECONDS)


def where_threads_stand() -> str:
    """Each thread with the innermost lines it is in, without any value."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    frames = sys._current_frames()  # noqa: SLF001  (Python's documented name)
    return "\n".join(f"{names.get(ident, ident)}: {_stack(frame)}" for ident, frame in frames.items())


def _stack(frame: FrameType) -> str:
    # Without the source's text, which would have to be read from files.
    lines = islice(traceback.walk_stack(frame), _FRAMES)
    return " < ".join(f"{f.f_code.co_name} ({Path(f.f_code.co_filename).name}:{line})" for f, line in lines)
