"""Rounds: when each loop of a worker last came round. Memory alone: to note it and to read it waits for nothing.

A round may take many answers, of a database or a broker, and each of them its time. Every single one has a limit, their
sum has none. So whoever waits for answers notes for the loop it works for, whichever that is, that one has come
(``come_round``): what counts as silence is a single wait.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


class _Here(threading.local):
    """What notes that the loop of this thread comes round; None on a thread without a loop that is watched."""

    note: Callable[[], None] | None = None


_here = _Here()


def come_round() -> None:
    """Note that the loop of this thread, if it has one, got an answer it waited for, a refusal included."""
    if _here.note is not None:
        _here.note()


class Rounds:
    """Counts of rounds, one for each loop that is watched. Thread-safe: a loop's count is written by its thread alone.

    A loop that is watched comes round every few seconds although it has nothing to do, and in the middle of long work
    whenever a part of it is done.
    """

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    @contextmanager
    def watched(self, name: str) -> Iterator[Callable[[], None]]:
        """Watch a loop for as long as the block lasts; the loop calls what it is given whenever it comes round.

        A loop that ends by an error is watched on: it will not come round again, and somebody must notice.
        """

        def came_round() -> None:
            self._counts[name] = self._counts.get(name, 0) + 1

        came_round()
        _here.note = came_round
        yield came_round
        _here.note = None
        del self._counts[name]

    def counts(self) -> Mapping[str, int]:
        """Loop -> rounds so far, of the loops that are watched now."""
        # Copying a dict with string keys is one step for the interpreter, so no lock is needed that somebody may hold.
        return dict(self._counts)
