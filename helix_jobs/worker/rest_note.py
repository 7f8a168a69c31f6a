"""RestNote: somebody wants the device, or wants no jobs to be taken; this user's workers on this host comply.

Notes lie in a file beside the device locks, which all workers of this user on this host read once a second. So they
count for workers of every home and every database, and also for one that is started later.

Trade-off: a row of the database would reach workers of other hosts. But who needs a device sits before it, and a worker
must be able to leave it while the database does not answer.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from helix_jobs.errors import ConfigurationError
from helix_jobs.files import read_private, write_private
from helix_jobs.locks import FileLock

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path


class Wish(StrEnum):
    """What a note asks for. Each wish has a file of its own, so that the end of one does not end the other."""

    YIELD = "yield"
    PAUSE = "pause"


@dataclass(frozen=True, slots=True, kw_only=True)
class RestNote:
    """Who rests on which device, and for how long.

    Attributes:
        device: The device's name in torch, such as ``cuda:0``, or of all of its kind, ``cuda``; None for all devices.
        until: When workers may go on; None for when the note is removed.
        at_once: Running jobs go back to the queue now, instead of getting the grace time.
    """

    device: str | None = None
    until: datetime | None = None
    at_once: bool = False

    def applies(self, device: str, moment: datetime) -> bool:
        """Whether a worker on this device rests at this moment."""
        kind = device.partition(":")[0]
        return self.device in (None, device, kind) and self.lasts(moment)

    def lasts(self, moment: datetime) -> bool:
        """Whether any worker may rest for it at this moment."""
        return self.until is None or moment < self.until


def joined(notes: Collection[RestNote]) -> RestNote | None:
    """What several notes ask of one worker together: it rests until the last of them ends. None for no notes."""
    if not notes:
        return None
    ends = [note.until for note in notes if note.until is not None]
    until = max(ends) if len(ends) == len(notes) else None
    return RestNote(until=until, at_once=any(note.at_once for note in notes))


def write_rest_note(directory: Path, wish: Wish, note: RestNote) -> None:
    """Leave a note, in the place of an earlier one of the same wish for the same device.

    Args:
        directory: Where the device locks lie.
        wish: What is asked for.
        note: The note.

    Raises:
        ConfigurationError: The file is another user's.
        OSError: The file cannot be read or written.
    """
    with _changing(directory):
        others: tuple[RestNote, ...] = ()
        with suppress(ConfigurationError):  # a damaged file is replaced
            others = read_rest_notes(directory, wish)
        now = datetime.now(UTC)
        kept = [one for one in others if one.device != note.device and one.lasts(now)]
        content = {"notes": [_stored(one) for one in (*kept, note)]}
        write_private(_path(directory, wish), f"{json.dumps(content)}\n".encode())


def read_rest_notes(directory: Path, wish: Wish) -> tuple[RestNote, ...]:
    """The notes of this wish, at most one for each device.

    Raises:
        ConfigurationError: The file holds no notes, or is another user's.
        OSError: The file cannot be read.
    """
    path = _path(directory, wish)
    try:
        return tuple(map(_read, json.loads(read_private(path))["notes"]))
    except FileNotFoundError:
        return ()
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(
            f"{path} is no note of helix {wish}; give the command again, or remove the file"
        ) from error


def remove_rest_note(directory: Path, wish: Wish) -> bool:
    """Remove all notes of this wish; returns whether there was one."""
    with _changing(directory):
        try:
            _path(directory, wish).unlink()
        except FileNotFoundError:
            return False
        return True


def _changing(directory: Path) -> FileLock:
    """Keeps another command from changing notes at the same moment."""
    return FileLock(directory / "notes.lock")


def _path(directory: Path, wish: Wish) -> Path:
    return directory / f"{wish}.json"


def _stored(note: RestNote) -> dict[str, Any]:
    until = None if note.until is None else note.until.astimezone(UTC).isoformat()
    return {"device": note.device, "until": until, "at_once": note.at_once}


def _read(stored: Mapping[str, Any]) -> RestNote:
    until = None if stored["until"] is None else datetime.fromisoformat(stored["until"])
    if until is not None and until.tzinfo is None:
        raise ValueError("a time without a zone")
    return RestNote(device=stored["device"], until=until, at_once=bool(stored["at_once"]))
