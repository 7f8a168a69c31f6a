"""preview_lines: the first lines of an input as they would be submitted. Nothing is stored."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from helix_jobs.client.submit_source import open_input
from helix_jobs.errors import BadLine
from helix_jobs.intake.limits import Limits
from helix_jobs.intake.stored_requests import to_engine_request

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from helix_jobs.client.inputs import Input
    from helix_jobs.client.line_defaults import LineDefaults
    from helix_jobs.engine.request import Request
    from helix_jobs.new_job import NewJob
    from helix_jobs.settings import Settings
    from helix_jobs.tables.ask import TableAsk


@dataclass(frozen=True, slots=True)
class Preview:
    """The beginning of an input.

    Attributes:
        jobs: The first good lines.
        bad_lines: The bad lines among and before them.
        has_more: Whether there are further lines.
    """

    jobs: Sequence[NewJob]
    bad_lines: Sequence[BadLine]
    has_more: bool


# Bad lines after which a preview ends although it has too few good ones.
_MOST_BAD = 1000


def preview_lines(
    settings: Settings,
    source: Input,
    defaults: LineDefaults,
    *,
    count: int,
    table: TableAsk | None = None,
    on_reading: Callable[[str], None] | None = None,
) -> Preview:
    """Read the first lines of an input.

    Args:
        settings: The limits of lines.
        source: As for ``HelixClient.submit``.
        defaults: For lines that do not say otherwise.
        count: Good lines to read.
        table: What is asked of the source as a table; None for lines.
        on_reading: Called with how a table is read.

    Raises:
        InputError: The input cannot be read, or a template cannot be used.
    """
    jobs: list[NewJob] = []
    bad: list[BadLine] = []
    with ExitStack() as stack:
        lines = stack.enter_context(open_input(source, table, on_reading))
        reader = defaults.reader(Limits.of(settings))
        found = lines.read(reader)
        for line in found:
            if isinstance(line, BadLine):
                bad.append(line)
            elif len(jobs) == count:
                return Preview(jobs, bad, has_more=True)
            else:
                jobs.append(line)
            if len(bad) >= _MOST_BAD:
                return Preview(jobs, bad, has_more=True)
    return Preview(jobs, bad, has_more=False)


def engine_request(job: NewJob) -> Request:
    """The request that a worker would hand to the engine.

    Raises:
        InvalidRequestError: The line asks for what no model can do.
    """
    job.seed_from("preview")
    return to_engine_request(job.line, job.request)
