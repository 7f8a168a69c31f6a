"""``pause`` and ``resume``: hold a batch back, or this machine's workers, and let it or them go on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from helix_jobs.cli.group import HelixCommand, command_line, echo_json, helix_options, open_client
from helix_jobs.cli.lock_name import lock_name
from helix_jobs.wording import counted

if TYPE_CHECKING:
    from helix_jobs.settings import Settings


@click.command("pause", cls=HelixCommand, short_help="Let no further job of a batch, or of a worker, begin.")
@click.argument("batch", required=False)
@click.option(
    "--worker", "is_worker", is_flag=True, help="Have this machine's workers take no jobs; models stay loaded."
)
@click.option("--now", "at_once", is_flag=True, help="With --worker: hand running jobs back at once.")
@click.option("--device", metavar="NAME", help="With --worker: only this device, such as cuda:1; default: all.")
@helix_options
def pause(
    settings: Settings, batch: str | None, *, is_worker: bool, at_once: bool, device: str | None, as_json: bool
) -> None:
    """Let no further job of a batch begin until it is resumed. Jobs that run end, and their answers are stored.

    With --worker, your workers on this machine take no jobs until they are resumed. Jobs that run end within the grace
    time (HELIX_SHUTDOWN_GRACE), the rest goes back to the queue without counting an attempt. The models stay loaded.
    """
    _check_what(batch, is_worker=is_worker)
    if not is_worker and (at_once or device is not None):
        raise click.UsageError("--now and --device go with --worker.")
    if batch is None:
        _pause_workers(settings, device, at_once=at_once, as_json=as_json)
        return
    with open_client(settings) as client:
        waiting = client.pause(batch)
    if as_json:
        echo_json({"id": batch, "paused": waiting})
    elif waiting:
        click.echo(f"{counted(waiting, 'job')} held back. Let them go on with: {command_line('resume', batch)}")
    else:
        click.echo("Nothing to pause: the batch is paused already, or none of its jobs waits.")


@click.command("resume", cls=HelixCommand, short_help="Let a paused batch, or paused workers, go on.")
@click.argument("batch", required=False)
@click.option("--release-brakes", is_flag=True, help="Have BATCH run without its brakes from now on.")
@click.option("--worker", "is_worker", is_flag=True, help="Let this machine's workers take jobs again.")
@helix_options
def resume(settings: Settings, batch: str | None, *, release_brakes: bool, is_worker: bool, as_json: bool) -> None:
    """Let the jobs of a paused batch begin again; with --worker, let your workers on this machine take jobs again.

    A batch that one of its brakes has paused (submit --max-tokens-total, --max-hours, --stop-if-failing) may spend the
    same again, unless --release-brakes takes its brakes away.
    """
    _check_what(batch, is_worker=is_worker)
    if is_worker and release_brakes:
        raise click.UsageError("--release-brakes goes with a BATCH.")
    if batch is None:
        _resume_workers(settings, as_json=as_json)
        return
    with open_client(settings) as client:
        waiting = client.resume(batch, release_brakes=release_brakes)
    if as_json:
        echo_json({"id": batch, "resumed": waiting})
    elif waiting:
        click.echo(f"{counted(waiting, 'job')} may begin. Follow with: {command_line('watch', batch)}")
    elif release_brakes:
        click.echo("The batch has no brakes any more. It is not paused, or none of its jobs waits.")
    else:
        click.echo("Nothing to resume: the batch is not paused, or none of its jobs waits.")


def _check_what(batch: str | None, *, is_worker: bool) -> None:
    if (batch is None) is not is_worker:
        raise click.UsageError("Give either a BATCH or --worker.")


def _pause_workers(settings: Settings, device: str | None, *, at_once: bool, as_json: bool) -> None:
    from helix_jobs.worker.device_lock import lock_directory
    from helix_jobs.worker.rest_note import RestNote, Wish, write_rest_note

    note = RestNote(device=None if device is None else lock_name(device), at_once=at_once)
    write_rest_note(lock_directory(settings.lock_dir), Wish.PAUSE, note)
    if as_json:
        echo_json({"worker": True, "device": note.device})
        return
    where = "of this machine" if device is None else f"on {device}"
    click.echo(f"The workers {where} take no more jobs. Let them go on with: {command_line('resume', '--worker')}")


def _resume_workers(settings: Settings, *, as_json: bool) -> None:
    from helix_jobs.worker.device_lock import lock_directory
    from helix_jobs.worker.rest_note import Wish, remove_rest_note

    ended = remove_rest_note(lock_directory(settings.lock_dir), Wish.PAUSE)
    if as_json:
        echo_json({"worker": True, "resumed": ended})
    else:
        click.echo("The workers go on." if ended else "Nothing to resume: no worker of this machine was paused.")
