"""``results``: the answers, readable or as a file, also while the batch still runs."""

from __future__ import annotations

import errno
import os
import sys
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import click

from helix_jobs.cli.console import make_console
from helix_jobs.cli.group import HelixCommand, command_line, echo_json, helix_options, open_client
from helix_jobs.cli.join_options import join_options
from helix_jobs.cli.views import print_answers
from helix_jobs.plain_text import escape_in_json, paragraphs, printable
from helix_jobs.storage.states import JobState
from helix_jobs.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from helix_jobs.results.file_writers import ByteSink
    from helix_jobs.results.join_options import JoinOptions
    from helix_jobs.settings import Settings
    from helix_jobs.storage.records import BatchStatus, JobResult

# This module writes "text", the export module the others (a test holds the names equal).
FILE_FORMATS: Final = ("jsonl", "csv", "parquet", "openai")
# Suffixes that only a joined table may have beside these.
_JOINED_SUFFIXES: Final = {".arrow": "arrow", ".feather": "arrow"}
_BINARY: Final = ("parquet", "arrow")
_SUFFIXES: Final = {"": "jsonl", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".parquet": "parquet"}
_SHOWN: Final = 20


@click.command("results", cls=HelixCommand, short_help="Print a batch's answers or write them to a file.")
@click.argument("batch")
@click.option("-o", "--output", type=click.Path(dir_okay=False), help="Write to this file, whole or not at all.")
@click.option(
    "--format",
    "fmt",
    type=click.Choice(("text", *FILE_FORMATS, "arrow")),
    help="Default: by the name of -o; text on a terminal; otherwise jsonl.",
)
@click.option(
    "--failed", is_flag=True, help="Include failed and cancelled jobs, with the reason; text shows only these."
)
@click.option(
    "--order",
    type=click.Choice(("line", "completion")),
    default="line",
    show_default=True,
    help="Order of the input file, or in which jobs ended.",
)
@join_options
@helix_options
def results(
    settings: Settings,
    batch: str,
    output: str | None,
    fmt: str | None,
    order: Literal["line", "completion"],
    *,
    join: str | None,
    joining: JoinOptions,
    failed: bool,
    as_json: bool,
) -> None:
    """Print or write a batch's answers; what is there so far if it still runs.

    With --join FILE the answers stand as columns beside the rows of the table that was submitted.

    On a terminal the first answers are shown shortened. Files and pipes get everything. With --json: jsonl on standard
    output, or with -o a summary of what was written.
    """
    chosen = fmt or _default_format(output, as_json=as_json, joined=join is not None)
    if join is not None and (chosen in ("text", "openai") or order != "line" or failed):
        raise click.UsageError(
            "--join writes jsonl, csv, parquet or arrow, in the table's order and with failed jobs: leave out "
            "--failed, --order and other formats."
        )
    if chosen == "arrow" and join is None:
        raise click.UsageError("--format arrow needs --join; choose parquet, which Arrow reads.")
    if chosen == "text" and (output is not None or as_json):
        raise click.UsageError("--format text is for terminals; choose jsonl, csv, parquet or openai.")
    if chosen in _BINARY and output is None and sys.stdout.isatty():
        raise click.UsageError(f"{chosen.capitalize()} is binary; give -o FILE.")
    from helix_jobs.results.export import export_results

    with open_client(settings) as client:
        status = client.status(batch)
        if chosen == "text":
            _show(status, client.results(batch, only_failed=failed, order=order), failed=failed)
            return
        if join is None:
            rows = client.results(batch, include_failed=failed, order=order)
            written = _write(partial(export_results, rows, fmt=chosen), output, chosen)
        else:
            joined = client.joined(batch, join, joining)
            click.echo(f"Reading {printable(join)} as {joined.reading}", err=True)
            written = _write(partial(joined.write, fmt=chosen), output, chosen)
    if output is None:
        return
    if as_json:
        echo_json({"id": batch, "path": output, "format": chosen, "written": written})
    else:
        click.echo(f"{counted(written, 'result')} written to {printable(output)}", err=True)
        if not status.done:
            what = "The batch is still being submitted" if status.total is None else "The batch still runs"
            click.echo(f"{what}; more results will come.", err=True)


def _default_format(output: str | None, *, as_json: bool, joined: bool) -> str:
    if output is not None:
        suffix = Path(output).suffix.lower()
        if joined and suffix in _JOINED_SUFFIXES:
            return _JOINED_SUFFIXES[suffix]
        if suffix not in _SUFFIXES:
            raise click.UsageError(
                f"The name {printable(output)} says no format that Helix writes; name a .jsonl, .csv or .parquet file, "
                "or give --format."
            )
        return _SUFFIXES[suffix]
    return "text" if sys.stdout.isatty() and not as_json and not joined else "jsonl"


def _write(write: Callable[[str | ByteSink], int], output: str | None, fmt: str) -> int:
    if output is not None:
        return write(output)
    stream: ByteSink = sys.stdout.buffer
    if sys.stdout.isatty():
        stream = _Terminal(paragraphs if fmt == "csv" else escape_in_json)
    try:
        written = write(stream)
        sys.stdout.flush()
    except OSError as error:
        # Windows reports a closed reader as EINVAL.
        if os.name == "nt" and error.errno == errno.EINVAL:
            raise BrokenPipeError(errno.EPIPE, "the reader has gone") from error
        raise
    return written


class _Terminal:
    """Standard output on a terminal: characters that could control the terminal are escaped or replaced."""

    def __init__(self, harmless: Callable[[str], str]) -> None:
        self._harmless = harmless

    def write(self, data: bytes, /) -> None:
        """Write whole characters, as every format but Parquet does."""
        sys.stdout.write(self._harmless(data.decode()))


def _show(status: BatchStatus, rows: Iterator[JobResult], *, failed: bool) -> None:
    """Show the first answers and mention the others; with ``failed``, only the jobs without an answer."""
    console = make_console()
    counts = status.counts
    unanswered = counts[JobState.FAILED] + counts[JobState.CANCELLED]
    there = unanswered if failed else counts[JobState.SUCCEEDED]
    shown = print_answers(console, islice(rows, _SHOWN))
    if next(rows, None) is not None:
        flags = ["--failed"] if failed else []
        more = command_line("results", status.id, *flags, "-o", "FILE")
        console.print(f"{shown.of(there)} shown. All of them: {more}", soft_wrap=True)
    elif not shown.answers:
        what = "No job failed" if failed else "No answers"
        console.print(f"{what}{'.' if status.done else ' so far.'}", soft_wrap=True)
    if unanswered and not failed:
        hint = command_line("results", status.id, "--failed")
        console.print(f"{counted(unanswered, 'job')} without an answer. See why with: {hint}", soft_wrap=True)
