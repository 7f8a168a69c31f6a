"""HomeFiles: what Helix itself leaves under HELIX_HOME beside the database and the models, and removing what is old.

A file's age is the time since it was last written or, if it is a compiled kernel or a profile, last used. Each of them
is made again when it is needed: kernels in a quarter of a minute, profiles in seconds.
"""

from __future__ import annotations

import shutil
import stat
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from helix_jobs.broker.embedded import EmbeddedBroker, Presence
from helix_jobs.files import require_own_directory
from helix_jobs.local_users import LOG_NAME, LocalUsers

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

# Whoever starts a server or a worker locks these.
_LOCKS: Final = frozenset({"users.lock", "start.lock"})


class FileKind(StrEnum):
    """What a file is."""

    LOG = "log"
    KERNEL = "kernel"  # compiled, of this or another version
    PROFILE = "profile"  # what was measured of a device or a model
    BROKER = "broker"  # what an embedded broker that no longer runs has left
    LEFTOVER = "leftover"  # of a process that was killed while it wrote


@dataclass(frozen=True, slots=True)
class HomeFile:
    """One file, or the folder of a compiler that was killed.

    Attributes:
        used_at: When it was last written or used.
    """

    path: Path
    kind: FileKind
    bytes: int
    used_at: datetime


def home_files(home: Path) -> list[HomeFile]:
    """What nobody uses, in no order. Links are not followed, and files of other names are nobody's to remove.

    Raises:
        ConfigurationError: A folder of the home is a link or another user's.
    """
    # A local worker that runs goes on writing to its log, whatever became of the name.
    is_written = (home / "local").is_dir() and LocalUsers(home).is_worker_there()
    logs = f"{LOG_NAME}.*" if is_written else f"{LOG_NAME}*"
    found = [*_in(home, {logs: FileKind.LOG, ".*.partial": FileKind.LEFTOVER})]
    kernels = {"kernels-*": FileKind.KERNEL, "tmp*": FileKind.LEFTOVER, ".*.partial": FileKind.LEFTOVER}
    found += _in(home / "native", kernels)
    found += _in(home / "profiles", {"*.json": FileKind.PROFILE, ".*.partial": FileKind.LEFTOVER})
    # A server that runs needs its socket, however old that is.
    if (home / "broker").is_dir() and EmbeddedBroker(home).presence() is Presence.ABSENT:
        found += _in(home / "broker", {"broker.log*": FileKind.LOG, "*": FileKind.BROKER})
    return found


def old_files(files: Iterable[HomeFile], before: datetime) -> list[HomeFile]:
    """Those last used before."""
    return [file for file in files if file.used_at < before]


def bytes_by_kind(files: Iterable[HomeFile]) -> dict[FileKind, int]:
    """How much each kind takes."""
    sizes: Counter[FileKind] = Counter()
    for file in files:
        sizes[file.kind] += file.bytes
    return dict(sizes)


def remove_files(files: Iterable[HomeFile]) -> list[HomeFile]:
    """Remove them; returns those that are gone. One that cannot be removed, or that somebody has, is left out."""
    removed = []
    for file in files:
        try:
            if stat.S_ISDIR(file.path.lstat().st_mode):
                shutil.rmtree(file.path)
            else:
                file.path.unlink()
        except OSError:  # another purge was faster, or Windows has it open
            continue
        removed.append(file)
    return removed


def _in(folder: Path, kinds: dict[str, FileKind]) -> Iterator[HomeFile]:
    """The folder's files whose names match; the first pattern says what they are."""
    if not folder.is_dir():
        return
    require_own_directory(folder)
    for path in folder.iterdir():
        kind = next((kind for pattern, kind in kinds.items() if path.match(pattern)), None)
        if kind is None or path.name in _LOCKS:
            continue
        # A worker that runs renames and removes its files between the listing and the look at one.
        with suppress(FileNotFoundError):
            status = path.lstat()
            is_scratch = kind is FileKind.LEFTOVER and stat.S_ISDIR(status.st_mode)
            if stat.S_ISREG(status.st_mode) or stat.S_ISSOCK(status.st_mode) or is_scratch:
                size = sum(inner.lstat().st_size for inner in path.rglob("*")) if is_scratch else status.st_size
                yield HomeFile(path, kind, size, datetime.fromtimestamp(status.st_mtime, UTC))
