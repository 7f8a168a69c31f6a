"""Rounds: counts how often each loop of a worker has come round. In memory only: neither counting nor reading waits.

A round may wait for many answers of a database or a broker. Each answer has a time limit, their sum has none. So the
code that waits for an answer counts each one as a round of the loop it runs in (``come_round``): only a single long
wait is silence.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


class _Here(threading.local):
    """The function that counts a round of this thread's loop; None on a thread without a watched loop."""

    note: Callable[[], None] | None = None


_here = _Here()


def come_round() -> None:
    """Count a round of this thread's loop, if it has one: an awaited answer came, or a refusal."""
    if _here.note is not None:
        _here.note()


class Rounds:
    """Counts of rounds, one for each watched loop. Thread-safe: only a loop's own thread writes its count.

    A watched loop comes round every few seconds even if idle, and during long work after each part.
    """

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    @contextmanager
    def watched(self, name: str) -> Iterator[Callable[[], None]]:
        """Watch a loop while the block lasts; the loop calls the yielded function whenever it comes round.

        A loop that ends by an error stays watched: it never comes round again, and the dead man's switch must notice.
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
        # Copying a dict with string keys is one step for the interpreter, so no lock is needed.
        return dict(self._counts)
