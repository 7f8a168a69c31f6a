"""``submit``: validate, store and enqueue a file of prompts; wait for it; or run all of Helix for it (``--local``)."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click

from helix_jobs.cli.acceptance_option import parse_accept
from helix_jobs.cli.brake_options import brake_options
from helix_jobs.cli.console import is_interactive, make_console, show, working
from helix_jobs.cli.follow import follow_for_person, print_summary, worker_notice
from helix_jobs.cli.group import INTERRUPTED, HelixCommand, command_line, echo_json, fail, helix_options, open_client
from helix_jobs.cli.like_option import like_option, options_like, other_models
from helix_jobs.cli.local_run import run_locally
from helix_jobs.cli.outlook_teller import OutlookTeller
from helix_jobs.cli.progress import all_succeeded
from helix_jobs.cli.sampling_options import sampling_options, truncation_option
from helix_jobs.cli.schema_option import schema_option
from helix_jobs.cli.streams import standard_input
from helix_jobs.cli.table_options import InputPath, table_options
from helix_jobs.cli.views import bad_line_json, bad_lines_view, batch_json
from helix_jobs.client.alike import alike
from helix_jobs.errors import InvalidInputError, UnreachableError
from helix_jobs.forecast.clock import read_moment
from helix_jobs.plain_text import printable
from helix_jobs.wording import counted, percent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rich.console import Console

    from helix_jobs.acceptance.rule import AcceptanceRule
    from helix_jobs.brakes import Brakes
    from helix_jobs.client.client import HelixClient
    from helix_jobs.client.submission import Submission, SubmitProgress, SubmitStage
    from helix_jobs.engine.prompt_truncation import TruncatePrompt
    from helix_jobs.engine.sampling_params import SamplingParams
    from helix_jobs.errors import BadLine
    from helix_jobs.settings import Settings
    from helix_jobs.storage.manifests import Manifest
    from helix_jobs.tables.ask import TableAsk

_LISTED_FAULTS: Final = 20
_STANDARD_INPUT: Final = "-"


def _parse_metadata(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """Split each KEY=VALUE at its first equals sign."""
    pairs = [value.partition("=") for value in values]
    for (key, equals, _), value in zip(pairs, values, strict=True):
        if not key or not equals:
            raise click.BadParameter(f"{value!r} is not KEY=VALUE.", ctx, parameter)
    return {key: text for key, _, text in pairs}


@click.command("submit", cls=HelixCommand, short_help="Validate, store and enqueue a file of prompts.")
@click.argument("file", metavar="FILE", type=InputPath(exists=True, readable=True, allow_dash=True))
@click.option("--wait", is_flag=True, help="Stay until the batch ends, with a live progress bar.")
@click.option(
    "--local", is_flag=True, help="Start the broker and a worker if missing, wait, show the answers, stop them."
)
@click.option("--name", help="What to call the batch.")
@click.option("--skip-invalid", is_flag=True, help="Enqueue the good lines; write the bad ones to FILE.invalid.jsonl.")
@click.option(
    "--rejects",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Where --skip-invalid writes the bad lines instead.",
)
@click.option("--idempotency-key", metavar="KEY", help="Submitting the same file under the same key again is harmless.")
@click.option(
    "--metadata", multiple=True, callback=_parse_metadata, metavar="KEY=VALUE", help="Store with the batch; repeatable."
)
@click.option(
    "--accept",
    callback=parse_accept,
    metavar="JSON|FILE",
    help='When an answer counts, for lines that do not say, as in {"not_cut": true}; others are tried again.',
)
@schema_option
@click.option(
    "--cache/--no-cache",
    default=None,
    help="Take stored answers of equal lines, or none; default: for greedy lines and lines with a seed of their own.",
)
@like_option
@click.option(
    "--deadline",
    metavar="TIME",
    help="Make the batch more urgent in time to be done by TIME: 07:00, or 2026-12-01T07:00.",
)
@brake_options
@table_options
@sampling_options
@truncation_option
@helix_options
def submit(
    settings: Settings,
    file: str,
    defaults: SamplingParams,
    truncate_prompt: TruncatePrompt | None,
    metadata: dict[str, str],
    *,
    table: TableAsk | None,
    response_format: dict[str, Any] | None,
    accept: AcceptanceRule | None,
    cache: bool | None,
    like: str | None,
    brakes: Brakes | None,
    deadline: str | None,
    wait: bool,
    local: bool,
    name: str | None,
    skip_invalid: bool,
    rejects: str | None,
    idempotency_key: str | None,
    as_json: bool,
) -> None:
    """Validate, store and enqueue the prompts in FILE (- is standard input) and print the batch id.

    FILE holds one JSON object a line: {"prompt": "..."}, {"messages": [...]} or an OpenAI Batch line. If a line is
    bad, every bad line is listed and nothing is enqueued. The sampling options are defaults for lines that do not say.

    With --prompt, --template or --messages FILE is a table (CSV, TSV, JSON lines, Parquet, Arrow, Excel), a folder or
    quoted pattern of text files, or a data set of the Hugging Face hub (hf://datasets/OWNER/NAME): --prompt "Summarise:
    {{ text }}" asks this about each row.
    """
    if rejects is not None and not skip_invalid:
        raise click.UsageError("--rejects needs --skip-invalid.")
    console = make_console(stderr=True)
    source = "standard input" if file == _STANDARD_INPUT else printable(file)
    options = {
        "name": name,
        "defaults": defaults,
        "truncate_prompt": truncate_prompt,
        "response_format": response_format,
        "idempotency_key": idempotency_key,
        "metadata": metadata or None,
        "accept": accept,
        "cache": cache,
        "table": table,
        "brakes": brakes,
        "deadline": None if deadline is None else read_moment(deadline, datetime.now(UTC), option="--deadline"),
        "skip_invalid": skip_invalid,
        "rejects": (rejects or _place_for_bad_lines(file)) if skip_invalid else None,
    }
    with open_client(settings) as client:
        other = None if like is None else client.manifest(like)
        if other is not None:
            options |= options_like(other, defaults)
        submission = _store(client, file, source, options, console, as_json=as_json)
        batch_id = submission.batch_id
        if not (wait or local):
            if as_json:
                echo_json(submission_json(submission))
            else:
                click.echo(batch_id)
                _hint(client, submission, console, other)
            return
        if local:
            final = run_locally(settings, client, batch_id, console, keep=idempotency_key is not None, as_json=as_json)
        else:
            if not as_json:
                click.echo(batch_id)
            final = follow_for_person(client, batch_id, console)
        if as_json:
            echo_json(batch_json(final))
        else:
            print_summary(console, final)
    if not all_succeeded(final):
        click.get_current_context().exit(1)


def _store(
    client: HelixClient, file: str, source: str, options: dict[str, Any], console: Console, *, as_json: bool
) -> Submission:
    """Submit the lines through the client; report the bad ones."""
    stream = standard_input() if file == _STANDARD_INPUT else None
    if stream is not None and stream.isatty() and options["table"] is None:
        console.print("Reading prompts from the keyboard, one JSON object a line; end with Ctrl-D (Windows: Ctrl-Z).")
    reached = _Reached()
    try:
        with _reading(console, source) as on_progress:
            submission = client.submit(
                file if stream is None else stream,
                on_progress=on_progress,
                on_stage=reached.note,
                on_reading=lambda reading: console.print(f"Reading {source} as {reading}", soft_wrap=True),
                **options,
            )
    except InvalidInputError as error:
        _refuse(error, source, console)
    except KeyboardInterrupt:
        reached.tell_interrupted(console, as_json=as_json)
    if submission.invalid_count:
        _print_bad_lines(submission.invalid, submission.invalid_count, console)
        skipped = counted(submission.invalid_count, "bad line")
        console.print(
            f"{skipped} skipped and written to {printable(options['rejects'])}", style="yellow", soft_wrap=True
        )
    if not as_json:
        jobs = counted(submission.total, "job")
        known = f"This idempotency key names a batch with these {jobs} already: {submission.batch_id}"
        stored = f"{jobs} from {source} stored as batch {submission.batch_id}"
        console.print(known if submission.reused else stored, soft_wrap=True)
    return submission


class _Reached:
    """The last stage of a submission: what an interrupted command may truthfully report."""

    def __init__(self) -> None:
        self._stage: SubmitStage | None = None
        self._batch_id = ""

    def note(self, stage: SubmitStage, batch_id: str) -> None:
        """Note a stage that the client reports."""
        self._stage, self._batch_id = stage, batch_id

    def tell_interrupted(self, console: Console, *, as_json: bool) -> NoReturn:
        """Report the state of the batch, print its id if it may exist, and exit."""
        from helix_jobs.client.submission import SubmitStage

        batch_id = self._batch_id
        if self._stage is SubmitStage.STORED:
            stored: bool | None = True
            message = (
                f"Interrupted, but batch {batch_id} is stored: its jobs run as soon as a worker takes them. "
                f"Stop them with: {command_line('cancel', batch_id)}"
            )
        elif self._stage is SubmitStage.SEALING:
            stored = None
            message = (
                f"Interrupted; whether batch {batch_id} is stored is uncertain. "
                f"Before you submit it again, see: {command_line('status', batch_id)}"
            )
        else:
            stored = False
            message = "Interrupted; nothing was enqueued."
        if as_json:
            named = {} if stored is False else {"batch_id": batch_id}
            error = {"type": "Interrupted", "message": message, "exit_code": INTERRUPTED, **named, "stored": stored}
            echo_json({"error": error})
        elif stored is not False:
            click.echo(batch_id)
        console.print(f"\n{message}", soft_wrap=True)
        click.get_current_context().exit(INTERRUPTED)
        raise AssertionError("click's exit raises")


def _refuse(error: InvalidInputError, source: str, console: Console) -> NoReturn:
    """List the bad lines and exit: nothing was enqueued."""
    ctx = click.get_current_context()
    _print_bad_lines(error.bad_lines, error.count, console)
    details = {
        "count": error.count,
        "invalid": [bad_line_json(fault) for bad in error.bad_lines for fault in bad.faults],
    }
    message = (
        f"{counted(error.count, 'line')} of {source} cannot be accepted; nothing was enqueued. "
        "Correct the file, or enqueue the other lines with --skip-invalid"
    )
    fail(ctx, error, message, error.exit_code, **details)


def _place_for_bad_lines(file: str) -> str:
    """The rejects file's path: beside the input, or in the working directory for a pipe or process substitution."""
    if file == _STANDARD_INPUT:
        return "stdin.invalid.jsonl"
    return f"{file}.invalid.jsonl" if Path(file).is_file() else "input.invalid.jsonl"


def _print_bad_lines(bad_lines: Sequence[BadLine], total: int, console: Console) -> None:
    faults = alike(bad_lines)
    shown = faults[:_LISTED_FAULTS]
    show(console, bad_lines_view(shown))
    more = len(faults) - len(shown)
    unread = f" in the first {len(bad_lines):,} of {total:,} bad lines" if total > len(bad_lines) else ""
    if more or unread:
        console.print(f"... and {counted(more, 'fault')} more{unread}" if more else f"These are the faults{unread}.")


def _hint(client: HelixClient, submission: Submission, console: Console, like: Manifest | None) -> None:
    """Print the next commands, and what differs from the batch whose options are repeated."""
    console.print(f"Follow it with: {command_line('watch', submission.batch_id)}", soft_wrap=True)
    # The batch is stored: a database that goes away now must not make the command look failed.
    with suppress(UnreachableError):
        status, workers = client.status(submission.batch_id), list(client.live_workers())
        notice = worker_notice(status, workers, client.time_limits.lease, client.settings)
        differs = None if like is None else other_models(client, like)
        slips = None if status.deadline is None else OutlookTeller(client).slipping(status)
        for sentence in (notice, differs, slips):
            if sentence:
                console.print(printable(sentence), soft_wrap=True, style="yellow")


@contextmanager
def _reading(console: Console, source: str) -> Iterator[Callable[[SubmitProgress], None] | None]:
    """Show on a terminal how much has been read; a million lines take a while."""
    if not is_interactive(console):
        yield None
        return

    def show(progress: SubmitProgress) -> None:
        share = (
            f" ({percent(progress.bytes_read / progress.bytes_total)})"
            if progress.bytes_read and progress.bytes_total
            else ""
        )
        bad = f", {progress.invalid:,} bad" if progress.invalid else ""
        display.update(f"Reading {source}: {counted(progress.accepted + progress.invalid, 'line')}{bad}{share}")

    with working(console, f"Reading {source}") as display:
        yield show


def submission_json(submission: Submission) -> dict[str, Any]:
    """A submission's outcome for programs."""
    return {
        "batch_id": submission.batch_id,
        "total": submission.total,
        "reused": submission.reused,
        "published": submission.published,
        "invalid": [bad_line_json(fault) for bad in submission.invalid for fault in bad.faults],
        "invalid_count": submission.invalid_count,
    }
