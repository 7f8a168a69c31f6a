"""``bench queue``: measure the queue with an engine that costs nothing. Everything heavy is imported when it runs."""

from __future__ import annotations

import re
import shlex
import signal
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import click

from helix_jobs.bounds import DEFAULT_MAX_BATCH_SIZE, MAX_BATCH_SIZE
from helix_jobs.cli.bench.measuring import measure, prepare
from helix_jobs.cli.bench.options import STANDARD_OUTPUT, json_option, write_json
from helix_jobs.cli.group import CONTEXT_SETTINGS, HelixCommand, settings_option

if TYPE_CHECKING:
    from collections.abc import Iterator

    from helix_jobs.settings import Settings

_MOST_STEPS: Final = 10_000
_SUMMARY: Final = "Submit, read, drain, export and cancel many jobs, with an engine that costs nothing."


def _read_steps(_context: click.Context, _option: click.Parameter, value: str) -> tuple[int, int]:
    """Parse ``N`` or ``N-M``."""
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", value.strip())
    if match is not None:
        fewest, most = int(match[1]), int(match[2] or match[1])
        if 1 <= fewest <= most <= _MOST_STEPS:
            return fewest, most
    raise click.BadParameter(f"{value!r}; give a number of steps, or fewest-most such as 10-100, up to {_MOST_STEPS}.")


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """Treat SIGTERM like Ctrl-C, so that no workers, broker or database are left behind."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@click.command("queue", cls=HelixCommand, context_settings=CONTEXT_SETTINGS, short_help=_SUMMARY)
@click.option("--jobs", type=click.IntRange(1, 100_000_000), default=100_000, show_default=True, help="Jobs a batch.")
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Worker processes.")
@click.option(
    "--batch-size",
    type=click.IntRange(1, MAX_BATCH_SIZE),
    default=DEFAULT_MAX_BATCH_SIZE,
    show_default=True,
    help="Batch slots of each worker.",
)
@click.option(
    "--database",
    "database_url",
    metavar="URL",
    help="A Postgres server, on which a database is made and dropped again [default: SQLite in a temporary directory].",
)
@click.option(
    "--step-ms",
    type=click.FloatRange(0, 60_000),
    default=0.0,
    show_default=True,
    help="How long the engine's step takes; above 0 the engine's idle time is reported.",
)
@click.option(
    "--steps",
    callback=_read_steps,
    default="1",
    show_default=True,
    metavar="N[-M]",
    help="Steps a job takes; of a range each job's number is drawn evenly, the same in every call.",
)
@click.option(
    "--celery/--no-celery", default=True, show_default=True, help="Measure Celery alone first, with empty tasks."
)
@json_option
@settings_option
def queue(_settings: Settings, *, json_file: str | None, **options: Any) -> None:  # noqa: ANN401  (click's own values)
    """Measure the queue: jobs submitted, drained, exported and cancelled a second, and what they cost in memory.

    Real worker processes with the fake engine, a real broker and a real database, all of its own in a temporary
    directory; nothing of HELIX_HOME, HELIX_REDIS_URL or HELIX_DATABASE_URL is touched.
    """
    from helix_jobs.cli.bench.queue_views import show_queue_report
    from helix_jobs.cli.console import make_console

    say = prepare(json_file)
    from helix_jobs.bench.queue.plan import QueuePlan
    from helix_jobs.bench.queue.session import QueueSession

    session = QueueSession(QueuePlan(command=shlex.join(["helix", *sys.argv[1:]]), **options), say)

    def run() -> None:
        with _terminated_like_interrupted():
            session.run()

    def report() -> None:
        found = session.report()
        write_json(found.to_json(), json_file)
        if json_file != STANDARD_OUTPUT:
            show_queue_report(make_console(), found)

    measure(run, report)
