"""A batch's output and error file: lines made from its answers as they are read, also while the batch runs."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Final

from helix_jobs.json_line import json_line
from helix_jobs.results.openai import openai_line
from helix_jobs.storage.results import iter_results

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from helix_jobs.storage.database import Database

# Answers held at once.
_PAGE: Final = 250
# Trade-off: larger pieces are sent with fewer calls, and the first line comes later.
_PIECE_BYTES: Final = 64 * 1024


def output_pieces(database: Database, batch_id: str, *, errors: bool, has_expired: bool) -> Iterator[bytes]:
    """The lines of a file, some at a time, in the order of the batch's lines.

    Args:
        database: The database.
        batch_id: The batch of the jobs.
        errors: The failed and cancelled jobs instead of the answered ones.
        has_expired: The batch was cancelled because its completion window ended.

    Raises:
        NotFoundError: There is no such batch; in the middle, it was removed meanwhile.
        DatabaseUnreachableError: The database does not answer.
    """
    found = iter_results(database.read, batch_id, only_failed=errors, chunk=_PAGE)
    lines = (
        json_line(openai_line(list(choices), has_expired=has_expired)).encode() + b"\n"
        for _, choices in groupby(found, lambda result: result.job_id)
    )
    return _joined(lines)


def _joined(lines: Iterable[bytes]) -> Iterator[bytes]:
    held, size = [], 0
    for line in lines:
        held.append(line)
        size += len(line)
        if size >= _PIECE_BYTES:
            yield b"".join(held)
            held, size = [], 0
    if held:
        yield b"".join(held)
