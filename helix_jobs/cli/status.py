"""``status``, ``list`` and ``watch``: how things stand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from helix_jobs.cli.group import HelixCommand, command_line, echo_json, helix_options, open_client

if TYPE_CHECKING:
    from helix_jobs.settings import Settings

_OVERVIEW = 5


@click.command("status", cls=HelixCommand, short_help="Show how a batch, or everything, stands.")
@click.argument("batch", required=False)
@helix_options
def status(settings: Settings, batch: str | None, *, as_json: bool) -> None:
    """Show how a batch stands; without BATCH, the workers and the newest batches."""
    from helix_jobs.cli.follow import worker_notice
    from helix_jobs.cli.rendering import make_console, show
    from helix_jobs.cli.views import batch_json, batch_view, batches_view, worker_json, worker_line

    with open_client(settings) as client:
        workers = list(client.live_workers())
        if batch is not None:
            found = client.status(batch)
            if as_json:
                echo_json(batch_json(found))
            else:
                console = make_console()
                show(console, batch_view(found))
                notice = worker_notice(found, workers)
                if notice:
                    console.print(notice, style="yellow", soft_wrap=True)
            return
        newest = list(client.list(_OVERVIEW))
    if as_json:
        echo_json({"workers": [worker_json(w) for w in workers], "batches": [batch_json(b) for b in newest]})
        return
    console = make_console()
    for worker in workers:
        console.print(f"Worker  {worker_line(worker)}", soft_wrap=True)
    if not workers:
        console.print(f"No worker is running. Start one with: {command_line('worker')}", soft_wrap=True)
    console.print()
    if newest:
        show(console, batches_view(newest, console.width))
    else:
        console.print(f"No batches yet. Submit one with: {command_line('submit', 'PROMPTS.jsonl')}", soft_wrap=True)


@click.command("list", cls=HelixCommand)
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="Newest batches to show.")
@helix_options
def list_batches(settings: Settings, limit: int, *, as_json: bool) -> None:
    """List batches, newest first."""
    from helix_jobs.cli.rendering import make_console, show
    from helix_jobs.cli.views import batch_json, batches_view

    with open_client(settings) as client:
        batches = list(client.list(limit))
    if as_json:
        echo_json([batch_json(batch) for batch in batches])
    elif batches:
        console = make_console()
        show(console, batches_view(batches, console.width))
    else:
        click.echo(f"No batches yet. Submit one with: {command_line('submit', 'PROMPTS.jsonl')}", err=True)


@click.command("watch", cls=HelixCommand, short_help="Follow a batch until it ends.")
@click.argument("batch")
@helix_options
def watch(settings: Settings, batch: str, *, as_json: bool) -> None:
    """Follow a batch until it ends; Ctrl-C leaves it running.

    With --json, a status object a line at each change. Exit code 1 if a job did not succeed.
    """
    from helix_jobs.cli.follow import follow_as_json, follow_for_person, print_summary
    from helix_jobs.cli.progress import all_succeeded
    from helix_jobs.cli.rendering import make_console

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
