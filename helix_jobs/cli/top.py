"""``top``: a live view of batches, slots, tokens per second, acceptance and memory, on the whole terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from helix_jobs.cli.group import HelixCommand, echo_json, helix_options, open_client
from helix_jobs.cli.interrupts import ended_by
from helix_jobs.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from helix_jobs.cli.top_rows import TopRows
    from helix_jobs.client.client import HelixClient
    from helix_jobs.settings import Settings


def _parse_place(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> list[tuple[str, int]]:
    places = []
    for value in values:
        host, _, port = value.rpartition(":")
        if not (port.isascii() and port.isdecimal() and 0 < int(port) < 2**16):
            raise click.BadParameter(f"{value!r} is not PORT or HOST:PORT.", ctx, parameter)
        places.append((host.strip("[]") or "127.0.0.1", int(port)))
    return places


@click.command("top", cls=HelixCommand, short_help="Watch batches and workers live, on the whole terminal.")
@click.option(
    "--metrics",
    "places",
    multiple=True,
    callback=_parse_place,
    metavar="[HOST:]PORT",
    help="Where a worker serves its metrics; repeatable. Default: HELIX_METRICS_PORT.",
)
@click.option(
    "--interval", type=click.FloatRange(0.2, 3600), default=1.0, show_default=True, help="Seconds between two looks."
)
@helix_options
def top(settings: Settings, places: list[tuple[str, int]], interval: float, *, as_json: bool) -> None:
    """Show what runs now, and keep it up to date: batches, slots, tokens per second, acceptance and memory.

    A worker's speed, acceptance and memory come from its metrics, where it serves them. With --json, one look.
    """
    if not places and settings.metrics_port is not None:
        places = [(settings.metrics_host, settings.metrics_port)]
    with open_client(settings) as client:
        read = _reader(client, places)
        if as_json:
            echo_json(read().to_json())
            return
        try:
            from helix_jobs.cli.top_view import TopView
        except ImportError as error:
            raise ConfigurationError(
                'helix top needs textual, which is not installed; run pip install -e ".[top]" in the clone, or '
                "pip install textual"
            ) from error
        if not _has_terminal():
            raise ConfigurationError("helix top needs a terminal; take helix top --json for one look, or helix status")
        read()  # an error is told before the screen is taken
        view = TopView(read, interval)
        with ended_by(view.end):
            view.run()
        if view.is_told:
            raise KeyboardInterrupt


def _has_terminal() -> bool:
    """Whether keys can be read and the screen, which textual draws on standard error, is seen."""
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr))


def _reader(client: HelixClient, places: list[tuple[str, int]]) -> Callable[[], TopRows]:
    from helix_jobs.cli.resting import idle_notice
    from helix_jobs.cli.top_rows import top_rows
    from helix_jobs.client.worker_metrics import read_worker_metrics

    snapshots = client.snapshots()

    def read() -> TopRows:
        found: list[Any] = [read_worker_metrics(*place) for place in places]
        snapshot = snapshots()
        notice = "" if snapshot.workers else idle_notice(client.settings)
        return top_rows(snapshot, {one.worker_id: one for one in found if one is not None}, notice)

    return read
