"""RestSign: a worker that rests says so in a file, for the commands of this user on this host.

It has no row of the database then, as it takes no jobs. Without a sign nobody could tell its rest from its death.

Trade-off: a row of the database would be seen from other hosts. But a worker must be able to rest while the database
does not answer, and a file beside the device locks costs it nothing.
"""

from __future__ import annotations

import json
import logging
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from secrets import token_hex
from typing import TYPE_CHECKING, Final

from helix_jobs.errors import ConfigurationError
from helix_jobs.files import read_private, write_private
from helix_jobs.storage.process_identity import Here, ProcessIdentity, here, is_gone, this_process

if TYPE_CHECKING:
    from pathlib import Path

    from helix_jobs.worker.rest import Rest

logger = logging.getLogger(__name__)

# A resting worker writes its sign anew well within this time; the clocks of the machine's processes are one.
FRESH_SECONDS: Final = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RestSign:
    """A worker that rests.

    Attributes:
        device: The device it works on, by torch's name.
        database: The database whose jobs it takes, without a password.
        why: Why it rests, for people.
        until: When the rest ends, if that is known.
        process: The worker's process.
    """

    device: str
    database: str
    why: str
    until: datetime | None
    process: ProcessIdentity


class RestBoard:
    """Where one worker's process puts up its sign.

    Args:
        directory: Where the device locks lie.
        device: The worker's device, by torch's name.
        database: Its database, without a password.
    """

    def __init__(self, directory: Path, device: str, database: str) -> None:
        self._device = device
        self._database = database
        self._process = this_process()
        # The rest that is shown, and when the sign was written.
        self._shown: tuple[Rest, float] | None = None
        self._path = directory / f"resting-{self._process.pid}-{token_hex(4)}.json"

    def show(self, rest: Rest) -> None:
        """Put up the sign of this rest, in the place of the last one, or put it up anew if it is no longer fresh.

        To be called every second or so. A disk that takes no file keeps no worker up.
        """
        now = time.monotonic()
        if self._shown is not None and self._shown[0] == rest and now - self._shown[1] < FRESH_SECONDS / 4:
            return
        self._shown = rest, now
        sign = RestSign(
            device=self._device, database=self._database, why=rest.why, until=rest.until, process=self._process
        )
        content = {**asdict(sign), "until": None if rest.until is None else rest.until.astimezone(UTC).isoformat()}
        try:
            write_private(self._path, f"{json.dumps(content)}\n".encode())
        except OSError as error:
            logger.warning("commands cannot see that this worker rests: %s", error)

    def clear(self) -> None:
        """Take the sign down."""
        self._shown = None
        with suppress(OSError):
            self._path.unlink()


def rest_signs(directory: Path, database: str, seen: Here | None = None) -> list[RestSign]:
    """The workers of this database that rest on this host. Signs that nobody keeps fresh any more are removed.

    A process cannot be seen from another boot or container, so a sign that is old counts as a dead worker's.

    Args:
        directory: Where the device locks lie.
        database: The database, without a password.
        seen: What can be seen of other processes.
    """
    seen = seen or here()
    found = []
    for path in sorted(directory.glob("resting-*.json")):
        sign = _read(path)
        if sign is None:
            continue
        if is_gone(sign.process, seen) or not _is_fresh(path):
            with suppress(OSError):
                path.unlink()
        elif sign.database == database:
            found.append(sign)
    return found


def _is_fresh(path: Path) -> bool:
    try:
        return abs(time.time() - path.stat().st_mtime) < FRESH_SECONDS
    except OSError:
        return False


def _read(path: Path) -> RestSign | None:
    """The sign at this path; None if it was taken down just now, or is no sign."""
    try:
        content = json.loads(read_private(path))
        until = None if content["until"] is None else datetime.fromisoformat(content["until"])
        texts = {name: str(content[name]) for name in ("device", "database", "why")}
        return RestSign(**texts, until=until, process=ProcessIdentity(**content["process"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, ConfigurationError) as error:
        logger.debug("%s is no sign of a resting worker: %s", path, error)
        return None
