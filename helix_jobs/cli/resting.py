"""What ``status`` says of workers of this machine that rest, and of what they are asked for."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.cli.group import command_line
from helix_jobs.errors import ConfigurationError
from helix_jobs.plain_text import printable
from helix_jobs.redaction import redact
from helix_jobs.wording import clock_time
from helix_jobs.worker.device_lock import lock_directory
from helix_jobs.worker.rest_note import Wish, read_rest_notes
from helix_jobs.worker.rest_sign import rest_signs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from helix_jobs.settings import Settings
    from helix_jobs.worker.rest_note import RestNote
    from helix_jobs.worker.rest_sign import RestSign

logger = logging.getLogger(__name__)

_WHY: Final = {Wish.YIELD: "leave {} to somebody else", Wish.PAUSE: "are paused on {}"}
_END: Final = {Wish.YIELD: ("yield", "--end"), Wish.PAUSE: ("resume", "--worker")}


def wishes(settings: Settings) -> Sequence[tuple[Wish, RestNote]]:
    """What this machine's workers are asked for now. Notes that cannot be read are left out, as by a new worker."""
    found = []
    now = datetime.now(UTC)
    for wish in Wish:
        try:
            notes = read_rest_notes(lock_directory(settings.lock_dir), wish)
        except (ConfigurationError, OSError) as error:
            logger.debug("no note of helix %s: %s", wish, error)
            continue
        found += [(wish, note) for note in notes if note.lasts(now)]
    return found


def wish_line(wish: Wish, note: RestNote) -> str:
    """One wish for people, and the command that ends it."""
    what = _WHY[wish].format("every device" if note.device is None else note.device)
    when = "" if note.until is None else f" until {clock_time(note.until, datetime.now(UTC))}"
    return f"This machine's workers {what}{when}. End it with: {command_line(*_END[wish])}"


def wish_json(wish: Wish, note: RestNote) -> dict[str, Any]:
    """One wish for programs."""
    return {"wish": wish.value, "device": note.device, "until": None if note.until is None else note.until.isoformat()}


def resting_workers(settings: Settings) -> Sequence[RestSign]:
    """This machine's workers that rest, and otherwise take jobs from this database."""
    return rest_signs(lock_directory(settings.lock_dir), redact(settings.database_url))


def why_line(sign: RestSign) -> str:
    """Why a worker rests, and until when."""
    until = "" if sign.until is None else f", until {clock_time(sign.until, datetime.now(UTC))}"
    return f"{printable(sign.why)}{until}"


def sign_line(sign: RestSign) -> str:
    """One resting worker for people."""
    return f"on {printable(sign.device)} (pid {sign.process.pid}) rests: {why_line(sign)}"


def sign_json(sign: RestSign) -> dict[str, Any]:
    """One resting worker for programs."""
    until = None if sign.until is None else sign.until.isoformat()
    return {"device": sign.device, "pid": sign.process.pid, "why": sign.why, "until": until}


def idle_notice(settings: Settings) -> str:
    """What to say where no worker takes jobs: that one rests, or how to start one."""
    if resting := wishes(settings):
        return wish_line(*resting[0])
    if signs := resting_workers(settings):
        return f"The worker rests: {why_line(signs[0])}"
    return f"No worker is running. Start one with: {command_line('worker')}"
