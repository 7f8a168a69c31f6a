"""``cancel`` and ``retry``: change what becomes of a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from helix_jobs.bounds import MAX_NEW_TOKENS
from helix_jobs.cli.group import HelixCommand, command_line, echo_json, helix_options, open_client
from helix_jobs.wording import counted

if TYPE_CHECKING:
    from helix_jobs.settings import Settings


@click.command("cancel", cls=HelixCommand, short_help="Cancel a batch or one job.")
@click.argument("target", metavar="BATCH|JOB")
@helix_options
def cancel(settings: Settings, target: str, *, as_json: bool) -> None:
    """Cancel a batch, or one job by its number; answers already there stay.

    Jobs that run are stopped by their worker within a few seconds. Cancelling twice is harmless. A batch whose
    submission did not finish is removed: none of its jobs was accepted. `status BATCH --jobs` lists jobs' numbers.
    """
    with open_client(settings) as client:
        is_job = target.isascii() and target.isdecimal()
        removed = not is_job and client.discard(target)
        cancelled = 0 if removed else client.cancel(target)
    if as_json:
        echo_json({"id": target, "cancelled": cancelled, "removed": removed})
    elif removed:
        click.echo(f"Batch {target} is removed: its submission had not finished, so no job of it was accepted.")
    elif cancelled:
        click.echo(f"{counted(cancelled, 'job')} cancelled.")
    else:
        click.echo(f"Nothing to cancel: {'job' if is_job else 'batch'} {target} had ended already.")


@click.command("retry", cls=HelixCommand, short_help="Queue failed and cancelled jobs again.")
@click.argument("batch")
@click.option(
    "--cut",
    "--truncated",
    "cut",
    is_flag=True,
    help="Instead, submit the jobs that max_tokens cut off again, as a batch of their own.",
)
@click.option("--max-tokens", type=click.IntRange(1, MAX_NEW_TOKENS), help="With --cut: their new limit.")
@click.option("--invalid", is_flag=True, help="Instead, queue those whose answer breaks its form; the answer goes.")
@click.option(
    "--where",
    metavar="CONDITION",
    help='Instead, queue those that match, as in "attempts > 1"; their answers go.',
)
@helix_options
def retry(
    settings: Settings,
    batch: str,
    *,
    cut: bool,
    max_tokens: int | None,
    invalid: bool,
    where: str | None,
    as_json: bool,
) -> None:
    """Queue a batch's failed and cancelled jobs again; answers already there stay.

    With --cut, the jobs whose answers ended at max_tokens are submitted as a new batch with a larger limit. The batch
    must have ended. Doing it twice gives the same new batch, unless jobs that were retried have been cut since. They
    start over: the tokens of the earlier answers are not stored, and a text alone does not say them.

    With --invalid or --where, chosen jobs are queued again: of those with an answer the answer goes, and the next one
    has a fresh seed. A condition names columns of jobs and results.
    """
    if cut != (max_tokens is not None):
        raise click.UsageError("--cut and --max-tokens belong together.")
    if cut and (invalid or where is not None):
        raise click.UsageError("--cut goes with neither --invalid nor --where.")
    with open_client(settings) as client:
        if max_tokens is not None:
            from helix_jobs.client.cut_off import resubmit_cut

            again = resubmit_cut(client, batch, max_tokens)
            if as_json:
                echo_json({"id": batch, "queued": again.total, "batch_id": again.batch_id, "reused": again.reused})
            else:
                click.echo(again.batch_id)
                watch = command_line("watch", again.batch_id)
                jobs = counted(again.total, "job")
                before = f"{jobs} {'was' if again.total == 1 else 'were'} submitted again before, as this batch"
                done = before if again.reused else f"{jobs} submitted again"
                click.echo(f"{done}. Follow with: {watch}", err=True)
            return
        queued = client.retry(batch, where=where, invalid=invalid)
    if as_json:
        echo_json({"id": batch, "queued": queued})
    elif queued:
        click.echo(f"{counted(queued, 'job')} queued again. Follow with: {command_line('watch', batch)}")
    elif invalid or where is not None:
        click.echo("Nothing to retry: no job of this batch that has ended matches.")
    else:
        click.echo("Nothing to retry: no job of this batch failed or was cancelled.")
