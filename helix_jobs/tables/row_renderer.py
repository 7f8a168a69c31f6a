"""RowRenderer: asks a process with limits which rows count, and what their lines are.

Rows go to the process some hundreds at a time. Where such a group exceeds the limits, its rows are asked about one by
one, so that only the row at fault is bad.

Trade-off: each row is written as JSON and read again, some ten microseconds; in return no template can hang or fill
the program that submits.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from helix_jobs.engine.text.bounded_process import (
    BoundedProcess,
    ProcessEndedError,
    ProcessLimits,
    RequestAtFaultError,
)
from helix_jobs.errors import ExhaustedError, HelixError, InputError
from helix_jobs.exhaustion import explain_exhaustion, is_shortage
from helix_jobs.tables.row import BadRow, Row, encoded_row, readable_again

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import TracebackType

_MODULE: Final = "helix_jobs.tables.render_process"
_GROUP_ROWS: Final = 256
_GROUP_BYTES: Final = 1024 * 1024
# After so many rows in a row that exceeded the limits, the template itself is at fault.
_MOST_AT_FAULT: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderLimits:
    """Limits of the process.

    Attributes:
        seconds: Processor time for a group of rows, and for each row alone where a group took more.
        process: Its other limits.
    """

    seconds: float = 10.0
    process: ProcessLimits = field(default_factory=lambda: ProcessLimits(memory_bytes=1_000_000_000))


DEFAULT_LIMITS: Final = RenderLimits()


@dataclass(frozen=True, slots=True)
class AskedRow:
    """A row, and what the process said of it.

    Attributes:
        row: The row.
        encoded: The row as JSON text.
        answer: Whether it counts, or its line as JSON text.
    """

    row: Row
    encoded: bytes
    answer: bool | str


class RowRenderer:
    """One process, used as a context manager.

    Args:
        where: The expression that tells which rows count; None for all.
        texts: As for ``RowTemplate``.
        limits: The process' limits.

    Raises:
        ExhaustedError: The system cannot start a process.
        InputError: A template cannot be read, or does not come to an end.
    """

    def __init__(self, where: str | None, texts: object, limits: RenderLimits = DEFAULT_LIMITS) -> None:
        self._setup = {
            "where": where,
            "texts": texts,
            "seconds": limits.seconds,
            "memory_bytes": limits.process.memory_bytes,
        }
        self._limits = limits
        self._process: BoundedProcess | None = None
        self._at_fault = 0
        self._started()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._drop()

    def ask(self, what: Literal["keep", "fill"], rows: Iterable[Row | BadRow]) -> Iterator[AskedRow | BadRow]:
        """What becomes of each row, in their order; bad rows pass.

        Raises:
            InputError: The template exceeds the limits with one row after the other.
            HelixError: The process was ended from outside, twice.
        """
        group: list[Row] = []
        encoded: list[bytes] = []
        size = 0
        for row in rows:
            text = None if isinstance(row, BadRow) else encoded_row(row)
            if isinstance(row, Row) and isinstance(text, bytes):
                group.append(row)
                encoded.append(text)
                size += len(text)
                if len(group) < _GROUP_ROWS and size < _GROUP_BYTES:
                    continue
            yield from self._asked(what, group, encoded)
            group, encoded, size = [], [], 0
            if isinstance(row, BadRow):
                yield row
            elif isinstance(text, BadRow):
                yield text
        yield from self._asked(what, group, encoded)

    def _asked(self, what: str, group: list[Row], encoded: list[bytes]) -> Iterator[AskedRow | BadRow]:
        while group:
            try:
                answers = self._answers(what, encoded)
            except RequestAtFaultError as error:
                if len(group) == 1:
                    yield self._blame(group[0], encoded[0], error)
                else:
                    yield from chain.from_iterable(
                        self._asked(what, [row], [text]) for row, text in zip(group, encoded, strict=True)
                    )
                return
            self._at_fault = 0
            for row, text, answer in zip(group, encoded, answers, strict=False):
                if isinstance(answer, list):
                    yield BadRow(row.number, answer[0], answer[1], answer[2], readable_again(text))
                else:
                    yield AskedRow(row, text, answer)
            # The process answers some rows of a group where their texts are large.
            group, encoded = group[len(answers) :], encoded[len(answers) :]

    def _blame(self, row: Row, text: bytes, error: RequestAtFaultError) -> BadRow:
        self._at_fault += 1
        if self._at_fault >= _MOST_AT_FAULT:
            raise InputError(
                f"line {row.number}: the template does not come to an end with {self._at_fault} rows one after the "
                f"other: its process {error}; nothing was enqueued. Simplify the template"
            ) from error
        return BadRow(
            row.number,
            "template",
            f"does not come to an end with the row: its process {error}",
            "simplify the template or shorten the row",
            readable_again(text),
        )

    def _answers(self, what: str, encoded: list[bytes]) -> list[Any]:
        """The process' answers about the first rows: at least about one."""
        rows = b",".join(encoded)
        line = b'{"what": "%s", "seconds": %r, "rows": [%s]}\n' % (what.encode(), self._limits.seconds, rows)
        for last in (False, True):
            process = self._started()
            try:
                answers: list[Any] = process.ask(line, self._limits.seconds)["rows"]
            except RequestAtFaultError:
                self._drop()
                raise
            except ProcessEndedError as error:  # killed by a user or for lack of memory, perhaps not because of it
                self._drop()
                if last:
                    raise HelixError(f"the process that fills templates in {error}; submit the table again") from error
            else:
                return answers
        raise AssertionError("the second try returns or raises")

    def _started(self) -> BoundedProcess:
        if self._process is not None and self._process.is_alive:
            return self._process
        self._drop()
        try:
            self._process = BoundedProcess(_MODULE, self._limits.process)
            self._process.start(json.dumps(self._setup).encode() + b"\n", self._limits.seconds)
        except ProcessEndedError as error:
            self._drop()
            raise InputError(f"the template cannot be compiled: its process {error}; simplify it") from error
        except (OSError, RuntimeError, MemoryError) as error:
            self._drop()
            if not is_shortage(error):
                raise
            raise ExhaustedError(explain_exhaustion(error)) from error
        if fault := self._process.ready["fault"]:
            self._drop()
            raise InputError(f"the template or expression cannot be read: {fault}; correct it")
        return self._process

    def _drop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
