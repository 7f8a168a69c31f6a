"""submit_source: reads a source of lines, stores its batch, and hands the first jobs to the broker."""

from __future__ import annotations

from contextlib import ExitStack, closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, BinaryIO

from helix_jobs.client.batch_labels import checked_key, storable_metadata, storable_text
from helix_jobs.client.handover import reach_broker
from helix_jobs.client.submission import SubmitProgress, Tally, submit_lines
from helix_jobs.errors import ConfigurationError, InputError
from helix_jobs.intake.limits import Limits
from helix_jobs.intake.sources import RejectsFile, open_source
from helix_jobs.storage.batches import new_batch_id
from helix_jobs.storage.records import NewBatch
from helix_jobs.tables.ask import TableAsk

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Generator, Mapping

    from helix_jobs.brakes import Brakes
    from helix_jobs.client.inputs import Input
    from helix_jobs.client.line_defaults import LineDefaults
    from helix_jobs.client.submission import Submission, SubmitStage
    from helix_jobs.errors import BadLine
    from helix_jobs.intake.sources import Source
    from helix_jobs.new_job import NewJob
    from helix_jobs.settings import Settings
    from helix_jobs.storage.database import Database


def submit_source(
    settings: Settings,
    open_database: Callable[[], Database],
    source: Input,
    defaults: LineDefaults,
    *,
    name: str | None,
    idempotency_key: str | None,
    metadata: Mapping[str, Any] | None,
    skip_invalid: bool,
    rejects: str | os.PathLike[str] | BinaryIO | None,
    on_invalid: Callable[[BadLine], None] | None,
    on_progress: Callable[[SubmitProgress], None] | None,
    on_stage: Callable[[SubmitStage, str], None],
    endpoint: str | None = None,
    table: TableAsk | None = None,
    on_reading: Callable[[str], None] | None = None,
    brakes: Brakes | None = None,
    deadline: datetime | None = None,
) -> Submission:
    """Submit a source, see ``HelixClient.submit``.

    Args:
        settings: The limits, and where the broker is.
        open_database: Returns the database; called when the source is open.
        source: As there.
        defaults: For lines that do not say otherwise.
        name: As there.
        idempotency_key: As there.
        metadata: As there.
        skip_invalid: As there.
        rejects: As there.
        on_invalid: As there.
        on_progress: As there.
        on_stage: As there.
        endpoint: The endpoint that every line has to be for; None takes lines of every form.
        table: What is asked of the source as a table; None for lines.
        on_reading: As there.
        brakes: As there.
        deadline: As there.
    """
    limits, now = Limits.of(settings), datetime.now(UTC)
    until = None if deadline is None else _in_utc(deadline)
    if until is not None and until <= now:
        raise InputError(f"the deadline {until:%Y-%m-%d %H:%M} UTC lies in the past; give a later one, or none")
    with ExitStack() as stack:
        lines = stack.enter_context(open_input(source, table, on_reading))
        sink = stack.enter_context(RejectsFile(rejects, source)) if rejects is not None else None
        handover = reach_broker(settings, open_database)
        if handover is not None:
            stack.callback(handover.close)
        new = NewBatch(
            id=new_batch_id(now),
            name=None if name is None else storable_text("name", name),
            source=lines.name,
            created_at=now,
            defaults=defaults.to_dict(),
            metadata=storable_metadata(metadata),
            idempotency_key=checked_key(idempotency_key),
            deadline=until,
            brakes=None if brakes is None else brakes.to_dict() or None,
        )
        reader = defaults.reader(limits, sink, endpoint=endpoint)

        def read() -> Generator[NewJob | BadLine, None, None]:
            yield from lines.read(reader)
            # Write the rejects before the batch is sealed: a later error would hide that the jobs run.
            if sink is not None:
                sink.finish()

        def report(tally: Tally) -> None:
            if on_progress is not None:
                done, size = lines.position()
                on_progress(
                    SubmitProgress(accepted=tally.accepted, invalid=tally.invalid, bytes_read=done, bytes_total=size)
                )

        submission = submit_lines(
            open_database(),
            new,
            stack.enter_context(closing(read())),
            skip_invalid=skip_invalid,
            limits=limits,
            tally=Tally(on_invalid=on_invalid),
            on_progress=report,
            on_stage=on_stage,
            facts=lines.facts,
            cache=False if settings.answer_cache == "off" and defaults.cache is None else defaults.cache,
        )
        return submission if handover is None else replace(submission, published=handover.publish())


def _in_utc(deadline: datetime) -> datetime:
    """The deadline in UTC.

    Raises:
        InputError: It lies so near the calendar's first or last day that some time zone cannot tell it.
    """
    try:
        # A day to either side: whoever reads it may be in any time zone.
        until = deadline.astimezone(UTC)
        _ = until - timedelta(days=1), until + timedelta(days=1)
    except (OverflowError, ValueError, OSError) as error:
        raise InputError(
            f"the deadline {deadline} lies at an end of the calendar, where not every time zone can tell it; give "
            "another one, or none"
        ) from error
    return until


def asked_table(template: str | None, table: TableAsk | None) -> TableAsk | None:
    """What is asked of a table, from either of two arguments.

    Raises:
        ConfigurationError: Both are given.
    """
    if template is not None and table is not None:
        raise ConfigurationError("template is short for a table of it alone; give TableAsk(prompt=...) instead of both")
    return table if template is None else TableAsk(prompt=template)


def open_input(source: Input, table: TableAsk | None, on_reading: Callable[[str], None] | None) -> Source:
    """Open lines, or a table as lines.

    Args:
        source: As for ``HelixClient.submit``.
        table: What is asked of the source as a table; None for lines. A data frame is a table in any case.
        on_reading: Called with how a table is read.

    Raises:
        ConfigurationError: A table needs a library that is not installed.
        InputError: The source cannot be opened.
    """
    if table is None and not hasattr(source, "__arrow_c_stream__"):
        return open_source(source)
    from helix_jobs.tables.table_source import TableSource

    # Without a question the columns are the fields of lines.
    return TableSource(source, table or TableAsk(), on_reading)
