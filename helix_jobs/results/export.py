"""Write results as jsonl, csv, parquet or OpenAI Batch output, as a stream."""

from __future__ import annotations

import json
import os
from functools import partial
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.errors import ConfigurationError
from helix_jobs.output_file import written_whole
from helix_jobs.results.columns import AS_JSON, COLUMNS, FROM_REQUEST, LOGPROBS
from helix_jobs.results.file_writers import tables_of, write_cells, write_lines, write_tables
from helix_jobs.results.logprobs import chat_content, read_logprobs
from helix_jobs.results.openai import openai_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from types import ModuleType

    from helix_jobs.results.file_writers import ByteSink
    from helix_jobs.storage.records import JobResult

FORMATS: Final = ("jsonl", "csv", "parquet", "openai")

_FROM_RESULT: Final = tuple(name for name in COLUMNS if name not in FROM_REQUEST)
# One call for all of a row's values: a getattr for each was a tenth of an export's processor time.
_values_of_result: Final = attrgetter(*_FROM_RESULT)
_TIMES: Final = ("queued_at", "finished_at")


def export_results(results: Iterable[JobResult], destination: str | os.PathLike[str] | ByteSink, fmt: str) -> int:
    """Write results in one of ``FORMATS`` and return how many.

    Args:
        results: Taken one by one (Parquet: as many as fit into a row group), never all in memory.
        destination: A path, replaced once the file is whole and left alone if anything fails; or a binary stream.
        fmt: ``jsonl``, ``csv``, ``parquet`` or ``openai``.

    Raises:
        ConfigurationError: The format is unknown, pyarrow is needed but not installed, or the path cannot be written.
    """
    write = _writer(fmt)
    if not isinstance(destination, str | os.PathLike):
        return write(results, destination)
    with written_whole(Path(destination)) as stream:
        return write(results, stream)


def result_row(result: JobResult) -> dict[str, Any]:
    """One result as plain JSON values under the names of ``COLUMNS``.

    Log probabilities have OpenAI's form of ``logprobs.content``.

    Raises:
        UnreadableRowError: The log probabilities are damaged.
    """
    row: dict[str, Any] = dict.fromkeys(COLUMNS)
    row.update(zip(_FROM_RESULT, _values_of_result(result), strict=True))
    for name, value in _CONVERTED.items():
        row[name] = value(result)
    return row


def result_values(result: JobResult, names: Iterable[str]) -> dict[str, Any]:
    """Some columns of ``result_row``, without the work for the others.

    Raises:
        UnreadableRowError: Log probabilities among them are damaged.
    """
    return {name: _CONVERTED[name](result) if name in _CONVERTED else getattr(result, name) for name in names}


def write_jsonl(results: Iterable[JobResult], stream: ByteSink) -> int:
    """Write one object a line, UTF-8, with the columns of ``COLUMNS``; messages and metadata as JSON."""
    return write_lines(map(result_row, results), stream)


def write_openai(results: Iterable[JobResult], stream: ByteSink) -> int:
    """Write OpenAI Batch output lines; failed and cancelled jobs in OpenAI's two error shapes."""
    return write_lines((openai_line(list(choices)) for _, choices in groupby(results, lambda r: r.job_id)), stream)


def write_csv(results: Iterable[JobResult], stream: ByteSink) -> int:
    """Write RFC 4180 in UTF-8 with a header; absent values are empty."""
    return write_cells(COLUMNS, (_flat_row(result).values() for result in results), stream)


def write_parquet(results: Iterable[JobResult], stream: ByteSink) -> int:
    """Write Zstandard-compressed Parquet; JSON as text.

    Raises:
        ConfigurationError: pyarrow is not installed.
    """
    try:
        import pyarrow as pa
    except ImportError as error:
        raise ConfigurationError(
            'Parquet needs pyarrow, which is not installed; take jsonl, or run pip install -e ".[parquet]" in the clone'
        ) from error
    return write_tables(results_tables(results, pa), results_schema(pa), stream, "parquet")


def results_schema(pyarrow: ModuleType) -> Any:  # noqa: ANN401  (pyarrow is untyped)
    """Arrow's schema of ``COLUMNS``."""
    kinds = {
        "bool": pyarrow.bool_(),
        "int64": pyarrow.int64(),
        "double": pyarrow.float64(),
        "string": pyarrow.string(),
        "timestamp": pyarrow.timestamp("us", "UTC"),
    }
    return pyarrow.schema([(name, kinds[kind]) for name, kind in COLUMNS.items()])


def results_tables(results: Iterable[JobResult], pyarrow: ModuleType) -> Iterator[Any]:
    """The results as Arrow tables of limited size; JSON as text."""
    rows = ({**_flat_row(result), **{name: getattr(result, name) for name in _TIMES}} for result in results)
    return tables_of(rows, results_schema(pyarrow))


def _writer(fmt: str) -> Callable[[Iterable[JobResult], ByteSink], int]:
    writers = {"jsonl": write_jsonl, "csv": write_csv, "parquet": write_parquet, "openai": write_openai}
    if fmt not in writers:
        raise ConfigurationError(f"the format {fmt!r} is unknown; use one of {', '.join(FORMATS)}")
    return writers[fmt]


def _flat_row(result: JobResult) -> dict[str, Any]:
    row = result_row(result)
    for name in AS_JSON:
        # Empty metadata gives an empty cell, not {}.
        row[name] = json.dumps(row[name], ensure_ascii=False) if row[name] else None
    return row


def _logprobs(name: str, result: JobResult) -> Any:  # noqa: ANN401  (JSON)
    found = read_logprobs(result, getattr(result, name))
    return None if found is None else chat_content(found)


# Columns that are not an attribute of the result as it is.
_CONVERTED: Final[Mapping[str, Callable[[JobResult], Any]]] = {
    "state": lambda result: str(result.state),
    "prompt": lambda result: result.request.get("prompt"),
    "messages": lambda result: result.request.get("messages"),
    "metadata": lambda result: result.request.get("metadata"),
    **{name: partial(_logprobs, name) for name in LOGPROBS},
    "queued_at": lambda result: result.queued_at.isoformat(),
    "finished_at": lambda result: None if result.finished_at is None else result.finished_at.isoformat(),
}
