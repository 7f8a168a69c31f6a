"""``pause`` and ``resume``: hold a batch back, and let it go on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from helix_jobs.cli.group import HelixCommand, command_line, echo_json, helix_options, open_client
from helix_jobs.wording import counted

if TYPE_CHECKING:
    from helix_jobs.settings import Settings


@click.command("pause", cls=HelixCommand, short_help="Let no further job of a batch begin.")
@click.argument("batch")
@helix_options
def pause(settings: Settings, batch: str, *, as_json: bool) -> None:
    """Let no further job of a batch begin until it is resumed. Jobs that run end, and their answers are stored."""
    with open_client(settings) as client:
        waiting = client.pause(batch)
    if as_json:
        echo_json({"id": batch, "paused": waiting})
    elif waiting:
        click.echo(f"{counted(waiting, 'job')} held back. Let them go on with: {command_line('resume', batch)}")
    else:
        click.echo("Nothing to pause: the batch is paused already, or none of its jobs waits.")


@click.command("resume", cls=HelixCommand, short_help="Let a paused batch go on.")
@click.argument("batch")
@click.option("--release-brakes", is_flag=True, help="Have BATCH run without its brakes from now on.")
@helix_options
def resume(settings: Settings, batch: str, *, release_brakes: bool, as_json: bool) -> None:
    """Let the jobs of a paused batch begin again.

    A batch that one of its brakes has paused (submit --max-tokens-total, --max-hours, --stop-if-failing) may spend the
    same again, unless --release-brakes takes its brakes away.
    """
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
