"""``yield``: have this machine's workers leave the device to somebody else, and take it again."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import click

from helix_jobs.cli.group import HelixCommand, command_line, echo_json, helix_options
from helix_jobs.cli.lock_name import lock_name
from helix_jobs.wording import clock_time

if TYPE_CHECKING:
    from pathlib import Path

    from helix_jobs.settings import Settings
    from helix_jobs.worker.rest_note import RestNote

_UNITS: Final = {"min": "minutes", "h": "hours", "d": "days"}
# Beyond the grace time: what the end of a worker may take.
_END_SECONDS: Final = 60.0
_LOOK_SECONDS: Final = 0.2


class _Span(click.ParamType[timedelta]):
    """``90min``, ``2h``, ``1d``."""

    name = "span"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:  # noqa: ANN401  (click's signature)
        """Read a number and its unit."""
        match = re.fullmatch(r"(\d{1,5})(min|h|d)", str(value))
        if match is None or not int(match[1]):
            self.fail("give a number of minutes, hours or days, such as 90min, 2h or 1d.", param, ctx)
        return timedelta(**{_UNITS[match[2]]: int(match[1])})


class _ClockTime(click.ParamType[datetime]):
    """``09:00``: the next time this machine's clock shows it."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:  # noqa: ANN401  (click's signature)
        """Find the next such time."""
        match = re.fullmatch(r"([01]?\d|2[0-3]):([0-5]\d)", str(value))
        if match is None:
            self.fail("give a time of day, such as 09:00.", param, ctx)
        from helix_jobs.forecast.clock import read_moment

        return read_moment(match[0], datetime.now(UTC), option="--until")


@click.command("yield", cls=HelixCommand, short_help="Leave the device to somebody else.")
@click.option("--for", "span", metavar="SPAN", type=_Span(), help="Take it again after 90min, 2h or 1d.")
@click.option("--until", metavar="TIME", type=_ClockTime(), help="Take it again at this time of day, such as 09:00.")
@click.option("--end", is_flag=True, help="Take it again now.")
@click.option("--now", "at_once", is_flag=True, help="Hand running jobs back at once instead of letting them finish.")
@click.option("--device", metavar="NAME", help="Only this device, such as cuda:1; default: all of this machine.")
@click.option("--no-wait", is_flag=True, help="Return before the device is free.")
@helix_options
def yield_device(
    settings: Settings,
    *,
    span: timedelta | None,
    until: datetime | None,
    end: bool,
    at_once: bool,
    device: str | None,
    no_wait: bool,
    as_json: bool,
) -> None:
    """Have your workers on this machine free the device's memory until --for, --until or --end.

    A worker takes no more jobs, lets those that run finish within the grace time (HELIX_SHUTDOWN_GRACE), hands the rest
    back without counting an attempt, frees its models and waits. Workers that start meanwhile wait, too. Jobs stay
    queued, and workers of other machines go on with them.
    """
    if (span is not None) + (until is not None) + end > 1:
        raise click.UsageError("Give one of --for, --until and --end.")
    if end and (at_once or device is not None or no_wait):
        raise click.UsageError("--end goes with no other option.")
    from helix_jobs.worker.device_lock import lock_directory
    from helix_jobs.worker.rest_note import RestNote, Wish, remove_rest_note, write_rest_note

    directory = lock_directory(settings.lock_dir)
    if end:
        ended = remove_rest_note(directory, Wish.YIELD)
        if as_json:
            echo_json({"ended": ended})
        else:
            click.echo(
                "The workers go on." if ended else "Nothing to end: no worker of this machine was told to yield."
            )
        return
    if span is not None:
        until = datetime.now(UTC) + span
    named = None if device is None else lock_name(device)
    note = RestNote(device=named, until=until, at_once=at_once)
    write_rest_note(directory, Wish.YIELD, note)
    free = not no_wait and _wait_free(directory, note, settings.shutdown_grace + _END_SECONDS)
    if as_json:
        echo_json({"device": named, "until": None if until is None else until.isoformat(), "free": free})
        return
    what = "The device is free" if device is None else f"{device} is free"
    if not free:
        what = "The workers were told" if no_wait else "A worker still has the device; its log says why"
    when = "" if until is None else f" until {clock_time(until, datetime.now(UTC))}"
    click.echo(f"{what}{when}. Take it back with: {command_line('yield', '--end')}")


def _wait_free(directory: Path, note: RestNote, seconds: float) -> bool:
    """Wait until no worker of this user holds the device; False if that takes longer."""
    from helix_jobs.worker.device_lock import is_held

    deadline = time.monotonic() + seconds
    while is_held(directory, note.device):
        if time.monotonic() > deadline:
            return False
        time.sleep(_LOOK_SECONDS)
    return True
