"""SparedLines: lines of an input that nobody computes, because their answer is stored or an equal line has it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from helix_jobs.answer_key import answer_key
from helix_jobs.errors import BadLine, UnreachableError
from helix_jobs.storage.answer_cache import stored_keys

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from helix_jobs.new_job import NewJob
    from helix_jobs.storage.answer_cache import AnswerSetup
    from helix_jobs.storage.database import OpenRead

logger = logging.getLogger(__name__)

# Lines looked up together.
_CHUNK: Final = 500
# Or fewer, once they have so many bytes.
_CHUNK_BYTES: Final = 4_000_000
# Digits of a key that are kept: 64 bits, as a number.
_DIGITS: Final = 16


class SparedLines:
    """Says of each line of one input whether a worker would take its answer instead of computing it.

    Args:
        setup: Whose answers the worker would take.
        wanted: Whether lines take stored answers, as for ``answer_key``.
        read: Opens a transaction that reads; None where there is no database yet.
    """

    def __init__(self, setup: AnswerSetup, *, wanted: bool | None, read: OpenRead | None) -> None:
        self._setup = setup
        self._wanted = wanted
        self._read = read
        self._computed: set[int] = set()
        # Of the line that was looked at last.
        self._key: str | None = None

    def look(self, lines: Iterable[NewJob | BadLine]) -> Iterator[tuple[NewJob | BadLine, bool]]:
        """Each line, and whether it is spared. Tell ``compute_last`` of a line before you ask for the next.

        Where the database stops answering, its answers no longer count.
        """
        rest = iter(lines)
        while chunk := _next(rest):
            keys = [
                None if isinstance(line, BadLine) else answer_key(line.request, wanted=self._wanted) for line in chunk
            ]
            stored = self._stored({key for key in keys if key is not None})
            for line, key in zip(chunk, keys, strict=True):
                self._key = key
                yield line, key is not None and (key in stored or _short(key) in self._computed)

    def compute_last(self) -> None:
        """Note that the line that was looked at last will be computed, so that equal ones take its answer."""
        if self._key is not None:
            self._computed.add(_short(self._key))

    def _stored(self, keys: set[str]) -> set[str]:
        if self._read is None or not keys:
            return set()
        try:
            with self._read() as connection:
                return stored_keys(connection, keys, self._setup)
        except UnreachableError as error:
            logger.warning("stored answers are not counted any more: %s", error)
            self._read = None
            return set()


def _next(lines: Iterator[NewJob | BadLine]) -> list[NewJob | BadLine]:
    """The next lines to look up together; empty at the end."""
    found: list[NewJob | BadLine] = []
    size = 0
    for line in lines:
        found.append(line)
        size += 0 if isinstance(line, BadLine) else line.size
        if len(found) == _CHUNK or size >= _CHUNK_BYTES:
            break
    return found


def _short(key: str) -> int:
    return int(key[:_DIGITS], 16)
