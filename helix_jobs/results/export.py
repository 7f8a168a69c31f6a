"""Write results as jsonl, csv, parquet or OpenAI Batch output, as a stream."""

from __future__ import annotations

import csv
import io
import json
import os
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from helix_jobs.errors import ConfigurationError
from helix_jobs.json_line import json_line
from helix_jobs.output_file import written_whole
from helix_jobs.results.logprobs import chat_content, read_logprobs
from helix_jobs.results.openai import openai_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from types import ModuleType

    from helix_jobs.storage.records import JobResult

FORMATS: Final = ("jsonl", "csv", "parquet", "openai")

# Columns in the order of the file -> Parquet type. Those of _AS_JSON are JSON text outside jsonl.
# Trade-off: writing the prompt beside its answer doubles a file of long prompts, but makes the file a complete data
# set that needs no join with the input.
COLUMNS: Final[Mapping[str, str]] = {
    "job_id": "int64",
    "batch_id": "string",
    "line": "int64",
    "custom_id": "string",
    "choice": "int64",
    "state": "string",
    "attempts": "int64",
    "tries": "int64",
    "prompt": "string",
    "messages": "string",
    "output_text": "string",
    "reasoning_text": "string",
    "tool_calls": "string",
    "scores": "string",
    "is_valid": "bool",
    "finish_reason": "string",
    "error_code": "string",
    "error_message": "string",
    "prompt_tokens": "int64",
    "cached_prompt_tokens": "int64",
    "completion_tokens": "int64",
    "reasoning_tokens": "int64",
    "dropped_prompt_tokens": "int64",
    "cumulative_logprob": "double",
    "logprobs": "string",
    "prompt_logprobs": "string",
    "queue_seconds": "double",
    "ttft_seconds": "double",
    "decode_seconds": "double",
    "total_seconds": "double",
    "tokens_per_second": "double",
    "draft_tokens": "int64",
    "accepted_tokens": "int64",
    "acceptance_rate": "double",
    "mean_acceptance_length": "double",
    "target_model": "string",
    "draft_model": "string",
    "device": "string",
    "dtype": "string",
    "worker_id": "string",
    "queued_at": "timestamp",
    "finished_at": "timestamp",
    "metadata": "string",
}
_FROM_REQUEST: Final = ("prompt", "messages", "metadata")
_FROM_RESULT: Final = tuple(name for name in COLUMNS if name not in _FROM_REQUEST)
# One call for all of a row's values: a getattr for each was a tenth of an export's processor time.
_values_of_result: Final = attrgetter(*_FROM_RESULT)
_AS_JSON: Final = ("messages", "metadata", "tool_calls", "scores", "logprobs", "prompt_logprobs")
_LOGPROBS: Final = ("logprobs", "prompt_logprobs")
_TIMES: Final = ("queued_at", "finished_at")
_ROW_GROUP: Final = 1000
# A row group ends early when its log probabilities have this many characters: a thousand rows of them may be gigabytes.
_ROW_GROUP_CHARS: Final = 1 << 25


class ByteSink(Protocol):
    """A binary stream to write to."""

    def write(self, data: bytes, /) -> object:
        """Append bytes."""
        ...


def export_results(results: Iterable[JobResult], destination: str | os.PathLike[str] | ByteSink, fmt: str) -> int:
    """Write results in one of ``FORMATS`` and return how many.

    Args:
        results: Taken one by one (Parquet: 1,000 at a time), never all in memory.
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
    for name in _FROM_REQUEST:
        row[name] = result.request.get(name)
    for name in _LOGPROBS:
        if (found := read_logprobs(result, row[name])) is not None:
            row[name] = chat_content(found)
    row["state"] = str(result.state)
    row["queued_at"] = result.queued_at.isoformat()
    row["finished_at"] = None if result.finished_at is None else result.finished_at.isoformat()
    return row


def write_jsonl(results: Iterable[JobResult], stream: ByteSink) -> int:
    """Write one object a line, UTF-8, with the columns of ``COLUMNS``; messages and metadata as JSON."""
    return _write_lines((result_row(result) for result in results), stream)


def write_openai(results: Iterable[JobResult], stream: ByteSink) -> int:
    """Write OpenAI Batch output lines; failed and cancelled jobs in OpenAI's two error shapes."""
    return _write_lines((openai_line(list(choices)) for _, choices in groupby(results, lambda r: r.job_id)), stream)


def write_csv(results: Iterable[JobResult], stream: ByteSink) -> int:
    """Write RFC 4180 in UTF-8 with a header; absent values are empty.

    Trade-off: cells are written unchanged. A spreadsheet may read a cell that starts with ``=`` as a formula, but any
    other reader gets the model's own text.
    """
    # csv writes text; emptying the buffer after each row keeps only one row in memory.
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)
    count = 0

    def flush() -> None:
        stream.write(buffer.getvalue().encode())
        buffer.seek(0)
        buffer.truncate()

    writer.writerow(COLUMNS)
    for count, result in enumerate(results, start=1):  # noqa: B007  (counts)
        writer.writerow(_flat_row(result).values())
        flush()
    flush()
    return count


def write_parquet(results: Iterable[JobResult], stream: ByteSink) -> int:
    """Write Zstandard-compressed Parquet, a row group for a thousand rows or fewer; JSON as text.

    Raises:
        ConfigurationError: pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ConfigurationError(
            'Parquet needs pyarrow, which is not installed; take jsonl, or run pip install -e ".[parquet]" in the clone'
        ) from error
    count = 0
    with pq.ParquetWriter(pa.PythonFile(stream, mode="w"), results_schema(pa), compression="zstd") as writer:
        for table in arrow_groups(results, pa):
            writer.write_table(table)
            count += table.num_rows
    return count


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


def arrow_groups(results: Iterable[JobResult], pyarrow: ModuleType) -> Iterator[Any]:
    """The results as Arrow tables of a thousand rows or fewer; JSON as text."""
    schema, rows = results_schema(pyarrow), iter(results)
    while group := _row_group(rows):
        yield pyarrow.Table.from_pylist(group, schema=schema)


def _writer(fmt: str) -> Callable[[Iterable[JobResult], ByteSink], int]:
    writers = {"jsonl": write_jsonl, "csv": write_csv, "parquet": write_parquet, "openai": write_openai}
    if fmt not in writers:
        raise ConfigurationError(f"the format {fmt!r} is unknown; use one of {', '.join(FORMATS)}")
    return writers[fmt]


def _flat_row(result: JobResult) -> dict[str, Any]:
    row = result_row(result)
    for name in _AS_JSON:
        # Empty metadata gives an empty cell, not {}.
        row[name] = json.dumps(row[name], ensure_ascii=False) if row[name] else None
    return row


def _row_group(results: Iterator[JobResult]) -> list[dict[str, Any]]:
    """The next rows of a Parquet file; none at the end."""
    group: list[dict[str, Any]] = []
    num_chars = 0
    for result in results:
        row = {**_flat_row(result), **{name: getattr(result, name) for name in _TIMES}}
        group.append(row)
        num_chars += sum(len(row[name] or "") for name in _LOGPROBS)
        if len(group) == _ROW_GROUP or num_chars >= _ROW_GROUP_CHARS:
            break
    return group


def _write_lines(rows: Iterable[dict[str, Any]], stream: ByteSink) -> int:
    count = 0
    for count, row in enumerate(rows, start=1):  # noqa: B007  (counts)
        stream.write(json_line(row).encode() + b"\n")
    return count
