"""What ``status`` says of workers of this machine that rest: they have no row, as they take no jobs."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.cli.group import command_line
from helix_jobs.errors import ConfigurationError
from helix_jobs.wording import clock_time
from helix_jobs.worker.device_lock import lock_directory
from helix_jobs.worker.rest_note import Wish, read_rest_note

if TYPE_CHECKING:
    from collections.abc import Sequence

    from helix_jobs.settings import Settings
    from helix_jobs.worker.rest_note import RestNote

logger = logging.getLogger(__name__)

_WHY: Final = {Wish.YIELD: "leave {} to somebody else", Wish.PAUSE: "are paused on {}"}
_END: Final = {Wish.YIELD: ("yield", "--end"), Wish.PAUSE: ("resume", "--worker")}


def wishes(settings: Settings) -> Sequence[tuple[Wish, RestNote]]:
    """What this machine's workers are asked for now. A note that cannot be read is left out, as by a new worker."""
    found = []
    now = datetime.now(UTC)
    for wish in Wish:
        try:
            note = read_rest_note(lock_directory(settings.lock_dir), wish)
        except (ConfigurationError, OSError) as error:
            logger.debug("no note of helix %s: %s", wish, error)
            continue
        if note is not None and note.lasts(now):
            found.append((wish, note))
    return found


def wish_line(wish: Wish, note: RestNote) -> str:
    """One wish for people, and the command that ends it."""
    what = _WHY[wish].format("every device" if note.device is None else note.device)
    when = "" if note.until is None else f" until {clock_time(note.until, datetime.now(UTC))}"
    return f"This machine's workers {what}{when}. End it with: {command_line(*_END[wish])}"


def wish_json(wish: Wish, note: RestNote) -> dict[str, Any]:
    """One wish for programs."""
    return {"wish": wish.value, "device": note.device, "until": None if note.until is None else note.until.isoformat()}
