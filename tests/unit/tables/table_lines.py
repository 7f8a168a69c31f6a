"""What becomes of a table: its prompts, and its bad lines."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from helix_jobs.engine.sampling_params import SamplingParams
from helix_jobs.intake.lines import LineReader
from helix_jobs.new_job import NewJob
from helix_jobs.tables.ask import TableAsk
from helix_jobs.tables.opened_table import open_table
from helix_jobs.tables.read_options import ReadOptions
from helix_jobs.tables.row_renderer import DEFAULT_LIMITS, RenderLimits
from helix_jobs.tables.table_source import TableSource

if TYPE_CHECKING:
    from helix_jobs.errors import BadLine
    from helix_jobs.tables.row import BadRow, Row


def rows_of(source: Any, **options: str | None) -> list[Row | BadRow]:
    """All rows of a table; bytes are those of a pipe."""
    given = io.BytesIO(source) if isinstance(source, bytes) else source
    with open_table(given, ReadOptions(**options)) as table:
        return list(table.rows())


def values_of(source: Any, **options: str | None) -> list[tuple[int, dict[str, Any]]]:
    """Number and values of each row, all of which are good."""
    return [(row.number, dict(row.values)) for row in rows_of(source, **options)]


def lines_of(
    source: Any, rejects: io.BytesIO | None = None, limits: RenderLimits = DEFAULT_LIMITS, **ask: Any
) -> list[NewJob | BadLine]:
    """What is submitted of a table."""
    given = io.BytesIO(source) if isinstance(source, bytes) else source
    with TableSource(given, TableAsk(**ask), limits=limits) as table:
        return list(table.read(LineReader(SamplingParams(), rejects=rejects)))


def prompts_of(source: Any, **ask: Any) -> list[Any]:
    """The prompts, or the bad lines as text."""
    return [
        line.request.get("prompt", line.request.get("messages")) if isinstance(line, NewJob) else str(line)
        for line in lines_of(source, **ask)
    ]
