"""Answers beside the rows of the table that they were asked about: same order, same columns, and the answers' own.

The table is read twice. The first reading proves that its rows are those that were submitted, and finds the types of
its columns; so nothing is written beside the wrong rows. Neither reading holds the table.
"""

from __future__ import annotations

import json
import os
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from helix_jobs.errors import ConfigurationError, InputError
from helix_jobs.output_file import part_of_input, written_whole
from helix_jobs.results.columns import AS_JSON, COLUMNS, FROM_REQUEST, LOGPROBS
from helix_jobs.results.export import result_values
from helix_jobs.results.field_kinds import FieldKind, common, fields_of_schema, fitted, kind_of_value, merged
from helix_jobs.results.frames import AsFrames
from helix_jobs.results.row_writers import arrow_schema, arrow_tables, write_rows
from helix_jobs.storage.states import JobState
from helix_jobs.tables.arrow_rows import import_pyarrow
from helix_jobs.tables.digest import TableDigest
from helix_jobs.tables.opened_table import open_table
from helix_jobs.tables.row import Row

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from helix_jobs.results.file_writers import ByteSink
    from helix_jobs.results.join_options import JoinOptions
    from helix_jobs.storage.records import JobResult

_KINDS: Final = {"int64": FieldKind.INT, "double": FieldKind.DOUBLE, "bool": FieldKind.BOOL}
_LINES_NOT_TABLE: Final = (
    "was submitted as lines, not as a table: there is no table to join; its results have the columns prompt, custom_id "
    "and metadata"
)


class BatchAnswers(Protocol):
    """What a joined table needs of a batch, read anew with each call."""

    def results(self, without: Collection[str]) -> Iterable[JobResult]:
        """The results, failed ones included, in the order of lines.

        Args:
            without: Large columns that need not be read: of ``request``, ``logprobs`` and ``prompt_logprobs``.
        """

    def requests(self) -> Iterable[Mapping[str, Any]]:
        """The stored requests of all jobs."""


class JoinedAnswers(AsFrames):
    """The rows of a table with their answers.

    Args:
        source: The table, as for ``open_table``; it is read twice, so no stream.
        batch_id: The batch.
        stored: What was stored of the table with the batch; None if it was no table.
        answers: The batch's answers.
        options: What stands in the result.

    Attributes:
        fields: The columns: name -> ``FieldKind``, or Arrow's field where the table is typed.
        reading: How the table is read, for a person.

    Raises:
        ConfigurationError: Two columns have the same name, or there is no schema to unnest by.
        InputError: It is not the table that the batch was submitted from, or cannot be read.
    """

    def __init__(
        self,
        source: object,
        batch_id: str,
        stored: Mapping[str, Any] | None,
        answers: BatchAnswers,
        options: JoinOptions,
    ) -> None:
        if stored is None:
            raise InputError(f"batch {batch_id} {_LINES_NOT_TABLE}")
        if hasattr(source, "read") or hasattr(source, "read_next_batch") or hasattr(source, "__next__"):
            raise InputError("a table is read twice to be joined; name a file, or give a data frame or a list")
        self._source, self._answers, self._options = source, answers, options
        self.reading = ""
        own = self._checked_fields(batch_id, stored)
        self._last = int(stored["rows"])
        self._properties = self._schema_fields(batch_id) if options.unnest else {}
        columns = {name: _kind_of_column(name) for name in options.columns} | self._properties
        self.fields: dict[str, Any] = dict(own)
        for name, kind in columns.items():
            shown = f"{options.prefix}{name}"
            if shown in self.fields:
                raise ConfigurationError(
                    f"the table has a column {shown!r}, and so have the answers; give the answers' columns a prefix "
                    "(--prefix answer_)"
                )
            self.fields[shown] = kind
        if (twice := next((name for name in options.columns if name in self._properties), None)) is not None:
            raise ConfigurationError(
                f"the schema has a property {twice!r}, and so have the results a column; choose others with --columns"
            )

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows in the table's order, as they are asked for; a job of several answers has a row for each."""
        waiting = iter(self._answers.results(self._unread()))
        result = next(waiting, None)
        with open_table(self._source, self._options.reading) as table:
            rows = table.rows() if self._options.all_rows else islice(table.rows(), self._last)
            for row in rows:
                if result is None and not self._options.all_rows:
                    return
                if not isinstance(row, Row):
                    continue
                found = False
                while result is not None and result.line <= row.number:
                    if result.line == row.number:
                        found = True
                        yield self._joined(row, result)
                    result = next(waiting, None)
                if not found and self._options.all_rows:
                    yield self._joined(row, None)

    def write(self, destination: str | os.PathLike[str] | ByteSink, fmt: str) -> int:
        """Write the rows as ``jsonl``, ``csv``, ``parquet`` or ``arrow`` and return how many.

        Args:
            destination: A path, replaced once the file is whole and left alone if anything fails; or a binary stream.
            fmt: The format.

        Raises:
            ConfigurationError: The path cannot be written, or is part of the table; or the format needs pyarrow, which
                is not installed, or cannot hold a value of the table.
        """
        if not isinstance(destination, str | os.PathLike):
            return write_rows(self.rows(), self.fields, destination, fmt)
        path = Path(destination)
        if (part := part_of_input(path, self._source, "table")) is not None:
            raise ConfigurationError(f"{path} {part}, which the joined rows would change; name another place for them")
        with written_whole(path) as stream:
            return write_rows(self.rows(), self.fields, stream, fmt)

    def to_arrow(self) -> Any:  # noqa: ANN401  (pyarrow is untyped)
        """A pyarrow table of all rows.

        Raises:
            ConfigurationError: pyarrow is not installed.
        """
        schema = arrow_schema(self.fields)
        pyarrow = import_pyarrow("data frames")
        return pyarrow.concat_tables([schema.empty_table(), *arrow_tables(self.rows(), self.fields, schema)])

    def _checked_fields(self, batch_id: str, stored: Mapping[str, Any]) -> dict[str, Any]:
        """The table's own columns, after a reading that compares its rows with those that were submitted."""
        count, digest = int(stored["rows"]), TableDigest()
        kinds: dict[str, FieldKind | None] = {}
        with open_table(self._source, self._options.reading) as table:
            self.reading = table.reading
            if table.schema is not None:
                own: dict[str, Any] = dict(zip(table.columns or (), table.schema, strict=True))
            else:
                own = {}
                kinds = dict.fromkeys(table.columns or ())
            for place, row in enumerate(table.rows(), start=1):
                if place <= count:
                    digest.note(row)
                elif stored["is_whole"]:
                    raise _other_table(batch_id, f"it has more than the {count:,} rows that were read then")
                elif not self._options.all_rows:
                    break  # none of the rows behind was asked about
                if isinstance(row, Row) and table.schema is None:
                    _widen(kinds, row.values)
        if digest.rows < count:
            raise _other_table(batch_id, f"it has {digest.rows:,} rows, and {count:,} were read then")
        if digest.to_dict()["digest"] != stored["digest"]:
            raise _other_table(batch_id, "its rows are others, or it is read otherwise")
        return own or {name: kind or FieldKind.STRING for name, kind in kinds.items()}

    def _schema_fields(self, batch_id: str) -> dict[str, FieldKind]:
        """The columns of the answers' schemas."""
        found: dict[str, FieldKind] = {}
        seen: set[str] = set()
        for request in self._answers.requests():
            constraint = request.get("constraint")
            if constraint is None or constraint.get("kind") != "json_schema" or constraint["value"] in seen:
                continue
            seen.add(constraint["value"])
            found = merged(found, fields_of_schema(json.loads(constraint["value"])))
        if not found:
            raise ConfigurationError(
                f"no line of batch {batch_id} is held to a JSON schema with properties, so there is nothing to "
                "unnest; submit with --json-schema"
            )
        return found

    def _unread(self) -> list[str]:
        """Large columns of results that no column of the table needs."""
        needed = set(self._options.columns)
        unread = [name for name in LOGPROBS if name not in needed]
        return unread if needed.intersection(FROM_REQUEST) else ["request", *unread]

    def _joined(self, row: Row, result: JobResult | None) -> dict[str, Any]:
        prefix = self._options.prefix
        joined = dict.fromkeys(self.fields) | dict(row.values)
        if result is None:
            return joined
        found = result_values(result, self._options.columns)
        joined |= {f"{prefix}{name}": value for name, value in found.items()}
        if self._properties and result.state is JobState.SUCCEEDED:
            members = _members(result.output_text)
            for name, kind in self._properties.items():
                joined[f"{prefix}{name}"] = fitted(members.get(name), kind)
        return joined


def _kind_of_column(name: str) -> FieldKind:
    return FieldKind.JSON if name in AS_JSON else _KINDS.get(COLUMNS[name], FieldKind.STRING)


def _widen(kinds: dict[str, FieldKind | None], values: Mapping[str, Any]) -> None:
    """Let the columns hold a further row."""
    for name, value in values.items():
        kind, before = kind_of_value(value), kinds.get(name)
        kinds[name] = before if kind is None else kind if before is None else common(before, kind)


def _members(text: str | None) -> Mapping[str, Any]:
    try:
        found = json.loads(text or "")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _other_table(batch_id: str, why: str) -> InputError:
    return InputError(
        f"this is not the table that batch {batch_id} was submitted from: {why}; name the same file, with the same "
        "--encoding, --delimiter and --sheet"
    )
