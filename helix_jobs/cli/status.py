"""``status``, ``list`` and ``watch``: show the state of batches and workers."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Final

import click

from helix_jobs.cli.group import HelixCommand, command_line, echo_json, helix_options, open_client
from helix_jobs.storage.states import JobState

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import Console

    from helix_jobs.settings import Settings
    from helix_jobs.storage.records import BatchStatus, JobSummary, Worker

_OVERVIEW: Final = 5
_LISTED_JOBS: Final = 50
# In this order: the jobs that a person most likely looks for come first.
_UNANSWERED: Final = (JobState.RUNNING, JobState.FAILED, JobState.QUEUED, JobState.CANCELLED)


@click.command("status", cls=HelixCommand, short_help="Show how a batch, or everything, stands.")
@click.argument("batch", required=False)
@click.option("--jobs", is_flag=True, help="List BATCH's jobs without an answer, with the numbers that cancel takes.")
@helix_options
def status(settings: Settings, batch: str | None, *, jobs: bool, as_json: bool) -> None:
    """Show how a batch stands; without BATCH, the workers and the newest batches.

    --jobs lists running, queued, failed and cancelled jobs, on a terminal the first of them. (Answers have their job's
    number in the results.) With --json they are the list "jobs" of the batch.
    """
    if jobs and batch is None:
        raise click.UsageError("--jobs needs a BATCH.")
    from helix_jobs.cli.console import make_console, show
    from helix_jobs.cli.follow import worker_notice
    from helix_jobs.cli.moments import outlook_json, outlook_words, slipping_words
    from helix_jobs.cli.resting import resting_workers, sign_json, wish_json, wishes
    from helix_jobs.cli.views import batch_json, batch_view, batches_view, job_json, worker_json

    with open_client(settings) as client:
        workers = list(client.live_workers())
        if batch is not None:
            found = client.status(batch)
            outlook = client.outlook(batch)
            if as_json:
                listed = {"jobs": [job_json(job) for job in client.jobs(batch, *_UNANSWERED)]} if jobs else {}
                echo_json({**batch_json(found, outlook_json(outlook, found, settings)), **listed})
            else:
                console = make_console()
                show(console, batch_view(found, outlook_words(outlook, found, settings)))
                notice = worker_notice(found, workers, client.time_limits.lease, settings)
                for sentence in (notice, slipping_words(outlook, found, settings)):
                    if sentence:
                        console.print(sentence, style="yellow", soft_wrap=True)
                if jobs:
                    console.print()
                    _list_jobs(console, found, client.jobs(batch, *_UNANSWERED))
            return
        newest = list(client.list(_OVERVIEW))
    if as_json:
        echo_json(
            {
                "workers": [worker_json(w) for w in workers],
                "resting": [wish_json(*one) for one in wishes(settings)],
                "resting_workers": [sign_json(one) for one in resting_workers(settings)],
                "batches": [batch_json(b) for b in newest],
            }
        )
        return
    console = make_console()
    _show_workers(console, settings, workers, client.time_limits.lease)
    console.print()
    if newest:
        show(console, batches_view(newest, console.width))
        _explain_submitting(console, newest)
    else:
        console.print(f"No batches yet. Submit one with: {command_line('submit', 'PROMPTS.jsonl')}", soft_wrap=True)


def _show_workers(console: Console, settings: Settings, workers: Sequence[Worker], lease: float) -> None:
    from helix_jobs.cli.resting import idle_notice, resting_workers, sign_line, wish_line, wishes
    from helix_jobs.cli.views import worker_line

    for worker in workers:
        console.print(f"Worker  {worker_line(worker, lease)}", soft_wrap=True)
    asked, resting = wishes(settings), resting_workers(settings)
    for sign in resting:
        console.print(f"Worker  {sign_line(sign)}", soft_wrap=True)
    for one in asked:
        console.print(wish_line(*one), style="yellow", soft_wrap=True)
    if not workers and not asked and not resting:
        console.print(idle_notice(settings), soft_wrap=True)


def _list_jobs(console: Console, batch: BatchStatus, jobs: Iterator[JobSummary]) -> None:
    """List the jobs without an answer: the first on a terminal, all in a pipe, each as it is read."""
    from helix_jobs.cli.views import JOB_HEADER, job_line

    there = sum(batch.counts[state] for state in _UNANSWERED)
    limit = _LISTED_JOBS if console.is_terminal else None
    shown = 0
    for shown, job in enumerate(islice(jobs, limit), start=1):
        if shown == 1:
            console.print(JOB_HEADER, soft_wrap=True)
        console.print(job_line(job), soft_wrap=True)
    if not shown:
        console.print("Every job has its answer.", soft_wrap=True)
    elif shown < there:
        more = command_line("status", batch.id, "--jobs")
        console.print(f"{shown:,} of {there:,} shown. All of them: {more} | more", soft_wrap=True)


def _explain_submitting(console: Console, batches: Sequence[BatchStatus]) -> None:
    """Say what to do about unfinished submissions: a dead one looks like one that is under way."""
    waiting = [batch.id for batch in batches if batch.total is None]
    if waiting:
        more = command_line("status", waiting[0])
        console.print(
            f"submitting: not all lines are stored yet. If nobody goes on with it, see: {more}",
            style="yellow",
            soft_wrap=True,
        )


@click.command("list", cls=HelixCommand)
@click.option(
    "--limit", type=click.IntRange(1, 1_000_000), default=20, show_default=True, help="Newest batches to show."
)
@helix_options
def list_batches(settings: Settings, limit: int, *, as_json: bool) -> None:
    """List batches, newest first."""
    from helix_jobs.cli.console import make_console, show
    from helix_jobs.cli.views import batch_json, batches_view

    with open_client(settings) as client:
        batches = list(client.list(limit))
    if as_json:
        echo_json([batch_json(batch) for batch in batches])
    elif batches:
        console = make_console()
        show(console, batches_view(batches, console.width))
        _explain_submitting(console, batches)
    else:
        click.echo(f"No batches yet. Submit one with: {command_line('submit', 'PROMPTS.jsonl')}", err=True)


@click.command("watch", cls=HelixCommand, short_help="Follow a batch until it ends.")
@click.argument("batch")
@helix_options
def watch(settings: Settings, batch: str, *, as_json: bool) -> None:
    """Follow a batch until it ends; Ctrl-C leaves it running.

    With --json, a status object a line at each change. Exit code 1 if a job did not succeed.
    """
    from helix_jobs.cli.console import make_console
    from helix_jobs.cli.follow import follow_as_json, follow_for_person, print_summary
    from helix_jobs.cli.progress import all_succeeded

    with open_client(settings) as client:
        if as_json:
            final = follow_as_json(client, batch)
        else:
            console = make_console()
            first = client.status(batch)
            if not first.done:
                console.print(f"Following {first.id}; Ctrl-C stops watching, not the batch.", soft_wrap=True)
            final = follow_for_person(client, batch, console)
            print_summary(console, final)
    if not all_succeeded(final):
        click.get_current_context().exit(1)
