"""Answers beside the rows of the table that they were asked about: same order, same columns, and the answers' own.

The table is read twice. The first reading proves that its rows are those that were submitted, and finds the types of
its columns; so nothing is written beside the wrong rows. Neither reading holds the table.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.errors import ConfigurationError, InputError
from helix_jobs.output_file import written_whole
from helix_jobs.results.export import COLUMNS, result_row
from helix_jobs.results.field_kinds import FieldKind, common, fields_of_schema, fitted, kind_of_value, merged
from helix_jobs.results.frames import AsFrames
from helix_jobs.results.row_writers import arrow_schema, arrow_tables, write_rows
from helix_jobs.storage.states import JobState
from helix_jobs.tables.arrow_rows import import_pyarrow
from helix_jobs.tables.digest import TableDigest
from helix_jobs.tables.opened_table import open_table
from helix_jobs.tables.read_options import ReadOptions
from helix_jobs.tables.row import Row

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from helix_jobs.results.export import ByteSink
    from helix_jobs.storage.records import JobResult

DEFAULT_COLUMNS: Final = (
    *("output_text", "finish_reason", "state", "error_code", "error_message"),
    *("prompt_tokens", "completion_tokens"),
)
_KINDS: Final = {"int64": FieldKind.INT, "double": FieldKind.DOUBLE, "bool": FieldKind.BOOL}
_AS_JSON: Final = frozenset({"messages", "metadata", "tool_calls", "scores", "logprobs", "prompt_logprobs"})
_LINES_NOT_TABLE: Final = (
    "was submitted as lines, not as a table: there is no table to join; its results have the columns prompt, custom_id "
    "and metadata"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinOptions:
    """What stands in a joined table.

    Attributes:
        columns: Columns of the answers.
        prefix: Stands before their names.
        unnest: Whether the properties of JSON answers become columns.
        all_rows: Whether rows without an answer stand there, too.
        reading: What is known of the table's form.

    Raises:
        ConfigurationError: There is no such column.
    """

    columns: Sequence[str] = DEFAULT_COLUMNS
    prefix: str = ""
    unnest: bool = False
    all_rows: bool = False
    reading: ReadOptions = field(default_factory=ReadOptions)

    def __post_init__(self) -> None:
        for name in self.columns:
            if name not in COLUMNS:
                raise ConfigurationError(f"{name!r} is no column of results; use some of {', '.join(COLUMNS)}")


class JoinedAnswers(AsFrames):
    """The rows of a table with their answers.

    Args:
        source: The table, as for ``open_table``; it is read twice, so no stream.
        batch_id: The batch.
        stored: What was stored of the table with the batch; None if it was no table.
        results: Returns the batch's results, failed ones included, in the order of lines; called anew for each reading.
        options: What stands in the result.

    Attributes:
        fields: The columns: name -> ``FieldKind``, or Arrow's field where the table is typed.

    Raises:
        ConfigurationError: Two columns have the same name, or there is no schema to unnest by.
        InputError: It is not the table that the batch was submitted from, or cannot be read.
    """

    def __init__(
        self,
        source: object,
        batch_id: str,
        stored: Mapping[str, Any] | None,
        results: Callable[[], Iterable[JobResult]],
        options: JoinOptions,
    ) -> None:
        if stored is None:
            raise InputError(f"batch {batch_id} {_LINES_NOT_TABLE}")
        if hasattr(source, "read") or hasattr(source, "read_next_batch") or hasattr(source, "__next__"):
            raise InputError("a table is read twice to be joined; name a file, or give a data frame or a list")
        self._source, self._results, self._options = source, results, options
        own = self._checked_fields(batch_id, stored)
        self._last = int(stored["rows"])
        self._properties = self._schema_fields(batch_id) if options.unnest else {}
        answers = {name: _kind_of_column(name) for name in options.columns} | self._properties
        self.fields: dict[str, Any] = dict(own)
        for name, kind in answers.items():
            shown = f"{options.prefix}{name}"
            if shown in self.fields:
                raise ConfigurationError(
                    f"the table has a column {shown!r}, and so have the answers; give the answers' columns a prefix "
                    "(--prefix answer_)"
                )
            self.fields[shown] = kind
        if len(self._properties) + len(options.columns) != len(answers):
            raise ConfigurationError("a property of the schema has the name of a column; choose others with --columns")

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows in the table's order, as they are asked for; a job of several answers has a row for each."""
        waiting = iter(self._results())
        result = next(waiting, None)
        with open_table(self._source, self._options.reading) as table:
            rows = table.rows() if self._options.all_rows else islice(table.rows(), self._last)
            for row in rows:
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
            ConfigurationError: The path cannot be written, or the format needs pyarrow, which is not installed.
        """
        if not isinstance(destination, str | os.PathLike):
            return write_rows(self.rows(), self.fields, destination, fmt)
        with written_whole(Path(destination)) as stream:
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
        for result in self._results():
            constraint = result.request.get("constraint")
            if constraint is None or constraint.get("kind") != "json_schema" or constraint["value"] in seen:
                continue
            seen.add(constraint["value"])
            found = merged(found, fields_of_schema(json.loads(constraint["value"])))
        if not found:
            raise ConfigurationError(
                f"no answer of batch {batch_id} is held to a JSON schema with properties, so there is nothing to "
                "unnest; submit with --json-schema"
            )
        return found

    def _joined(self, row: Row, result: JobResult | None) -> dict[str, Any]:
        prefix = self._options.prefix
        answers: dict[str, Any] = {} if result is None else result_row(result)
        joined = dict.fromkeys(self.fields) | dict(row.values)
        joined |= {f"{prefix}{name}": answers.get(name) for name in self._options.columns}
        if self._properties and result is not None and result.state is JobState.SUCCEEDED:
            members = _members(result.output_text)
            for name, kind in self._properties.items():
                joined[f"{prefix}{name}"] = fitted(members.get(name), kind)
        return joined


def _kind_of_column(name: str) -> FieldKind:
    return FieldKind.JSON if name in _AS_JSON else _KINDS.get(COLUMNS[name], FieldKind.STRING)


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
