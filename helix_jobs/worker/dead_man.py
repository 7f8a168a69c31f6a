"""DeadMansSwitch: ends waits that would never end.

Every wait in a worker has a time limit: statements, answers of the broker, engine steps. This switch is for the wait
that nobody thought of. Each loop of the worker notes when it comes round (``Rounds``). If a loop has not come round for
a minute, the switch closes the sockets of database calls that have been out for so long: the call ends with an error
and is tried again. After two minutes the process ends with exit code 1, for its supervisor to start a new one; its jobs
are reclaimed.

The switch's thread touches memory only. It reads no file, asks no service, takes no lock that a waiting thread may
hold, and does not log by itself. Long honest work does not count as silence: the models are loaded before the switch
starts, an engine step has a longer limit, and time in which this thread did not run either (the machine suspended, the
process stopped, the processor taken away) is not counted. A round may ask database or broker for many slow answers:
each answer counts as a round (``rounds.come_round``), and each has a limit far below this one.
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
# How long the last message may take to reach the log.
SAY_SECONDS: Final = 2.0
_FRAMES: Final = 6


@dataclass(frozen=True, slots=True)
class Silence:
    """How long a loop has been seen at the same round."""

    rounds: int
    seconds: float = 0.0


def observe(previous: Mapping[str, Silence], counts: Mapping[str, int], elapsed: float) -> dict[str, Silence]:
    """Add one sample of the loops' rounds.

    Args:
        previous: The silences so far.
        counts: Loop -> rounds now; a loop that has ended is not in it.
        elapsed: Watched seconds since the previous sample.
    """
    return {
        name: replace(previous[name], seconds=previous[name].seconds + elapsed)
        if name in previous and previous[name].rounds == rounds
        else Silence(rounds)
        for name, rounds in counts.items()
    }


@dataclass(frozen=True, slots=True)
class Limit:
    """How long a loop may be silent, and the function called then with the reason: once, and it must not wait."""

    seconds: float
    act: Callable[[str], None]


class DeadMansSwitch:
    """Checks the loops every second, on a thread that waits for nothing else.

    Args:
        rounds: The loops' rounds.
        calls: Calls to the database, which the switch can close.
        close: Seconds after which it closes them.
        limit: The limit of every loop.
        limits: Loop -> its limit, for loops with another one.
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
        """Check the loops once and act on it."""
        if self._stop.is_set():
            return
        now = self._clock()
        gap = 0.0 if self._looked_at is None else now - self._looked_at
        self._looked_at = now
        elapsed = min(gap, 2 * LOOK_SECONDS)
        # Calls are timed by the clock alone, so after a gap they get the full time again to be answered.
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
    """Log a message on a thread of its own: the thread that holds the log's lock may be the one that hangs."""
    speaker = threading.Thread(target=logger.critical, args=(message,), name="helix-last-word", daemon=True)
    with suppress(RuntimeError):  # no more threads
        speaker.start()
        speaker.join(SAY_SECONDS)


def where_threads_stand() -> str:
    """Each thread and its innermost lines, without any values."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    frames = sys._current_frames()  # noqa: SLF001  (Python's documented name)
    return "\n".join(f"{names.get(ident, ident)}: {_stack(frame)}" for ident, frame in frames.items())


def _stack(frame: FrameType) -> str:
    # Without source text, which would have to be read from files.
    lines = islice(traceback.walk_stack(frame), _FRAMES)
    return " < ".join(f"{f.f_code.co_name} ({Path(f.f_code.co_filename).name}:{line})" for f, line in lines)
