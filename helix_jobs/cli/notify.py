"""``notify``: try the channels of notices, make a secret, and show what was told."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from helix_jobs.cli.group import HelixCommand, command_line, echo_json, helix_options, open_client
from helix_jobs.errors import ConfigurationError, HelixError

if TYPE_CHECKING:
    from helix_jobs.settings import Settings


class _HelixCommandGroup(click.Group):
    """A group whose commands report errors the Helix way."""

    command_class = HelixCommand


@click.group("notify", cls=_HelixCommandGroup, short_help="Try what tells you of events, or show what was told.")
def notify() -> None:
    """Workers tell a webhook, a program, or mail and chat of what happens to batches; see docs/notifications.md."""


@notify.command("test", short_help="Send an event of the kind helix.test to every channel.")
@helix_options
def test(settings: Settings, *, as_json: bool) -> None:
    """Send an event of the kind helix.test to every channel of the settings, and say what came back.

    Exit code 1 if a channel did not take it.
    """
    from helix_jobs.notify.channels import channels_of
    from helix_jobs.notify.event import Event
    from helix_jobs.storage.notices import TEST, new_notice_id

    channels = channels_of(settings)
    if not channels:
        raise ConfigurationError(
            "no channel is set; set HELIX_WEBHOOK_URL with HELIX_WEBHOOK_SECRET, HELIX_NOTIFY_COMMAND or "
            "HELIX_NOTIFY_APPRISE"
        )
    event = Event(new_notice_id(), TEST, datetime.now(UTC), {"message": "This is a test."})
    outcomes = []
    for channel in channels:
        try:
            outcomes.append({"channel": channel.name, "delivered": True, "answer": channel.send(event)})
        except HelixError as error:
            outcomes.append({"channel": channel.name, "delivered": False, "answer": str(error)})
    if as_json:
        echo_json({"id": event.id, "channels": outcomes})
    else:
        for outcome in outcomes:
            click.echo(f"{outcome['channel']}: {'' if outcome['delivered'] else 'not delivered: '}{outcome['answer']}")
    if not all(outcome["delivered"] for outcome in outcomes):
        click.get_current_context().exit(1)


@notify.command("secret", short_help="Make a secret for HELIX_WEBHOOK_SECRET.")
@helix_options
def secret(settings: Settings, *, as_json: bool) -> None:  # noqa: ARG001  (every command has the same first argument)
    """Print a fresh secret. Nothing of Helix keeps it: give it to HELIX_WEBHOOK_SECRET and to the receiver."""
    from helix_jobs.notify.signature import new_secret

    made = new_secret()
    if as_json:
        echo_json({"secret": made})
    else:
        click.echo(made)


@notify.command("list", short_help="Show the newest events, and whether they were delivered.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="How many to show.")
@helix_options
def list_notices(settings: Settings, limit: int, *, as_json: bool) -> None:
    """Show the newest events first, and whether they were delivered."""
    from helix_jobs.cli.console import clock_time, timestamp
    from helix_jobs.plain_text import printable

    with open_client(settings) as client:
        told = client.notices(limit)
    if as_json:
        echo_json(
            [
                {
                    "id": one.id,
                    "type": one.kind,
                    "batch_id": one.batch_id,
                    "created_at": timestamp(one.created_at),
                    "delivered_at": timestamp(one.delivered_at),
                    "attempts": one.attempts,
                    "waits": one.due_at is not None,
                    "error": one.error,
                }
                for one in told
            ]
        )
        return
    for one in told:
        click.echo(f"{clock_time(one.created_at)}  {one.kind}  {one.batch_id or '-'}  {printable(one.state)}")
    if not told:
        click.echo("Nothing has happened yet that there is to tell.")
    elif not any(one.attempts for one in told):
        click.echo(f"Nobody was told. Try the channels with: {command_line('notify', 'test')}", err=True)
