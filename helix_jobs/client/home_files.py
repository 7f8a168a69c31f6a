"""Files that Helix leaves under HELIX_HOME beside the database and the models, and the removal of old ones.

A file's age counts from its last write or, for compiled kernels and profiles, from its last use. Helix makes each of
them again when needed: kernels in a quarter of a minute, most profiles in
seconds, and the digests of models among them by reading the models' files.
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

# Locked by every process that starts a server or a worker.
_LOCKS: Final = frozenset({"users.lock", "start.lock"})


class FileKind(StrEnum):
    """The kind of a file."""

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
    """The files that no process uses, in no order. Links are not followed, and files with other names are left alone.

    Raises:
        ConfigurationError: A folder of the home is a link or belongs to another user.
    """
    # A running local worker keeps writing to its log even after the file is removed.
    is_written = (home / "local").is_dir() and LocalUsers(home).is_worker_there()
    logs = f"{LOG_NAME}.*" if is_written else f"{LOG_NAME}*"
    found = [*_in(home, {logs: FileKind.LOG, ".*.partial": FileKind.LEFTOVER})]
    kernels = {"kernels-*": FileKind.KERNEL, "tmp*": FileKind.LEFTOVER, ".*.partial": FileKind.LEFTOVER}
    found += _in(home / "native", kernels)
    found += _in(home / "profiles", {"*.json": FileKind.PROFILE, ".*.partial": FileKind.LEFTOVER})
    # A running server needs its socket, however old the file is.
    if (home / "broker").is_dir() and EmbeddedBroker(home).presence() is Presence.ABSENT:
        found += _in(home / "broker", {"broker.log*": FileKind.LOG, "*": FileKind.BROKER})
    return found


def old_files(files: Iterable[HomeFile], before: datetime) -> list[HomeFile]:
    """The files last used before ``before``."""
    return [file for file in files if file.used_at < before]


def bytes_by_kind(files: Iterable[HomeFile]) -> dict[FileKind, int]:
    """The total size of each kind."""
    sizes: Counter[FileKind] = Counter()
    for file in files:
        sizes[file.kind] += file.bytes
    return dict(sizes)


def remove_files(files: Iterable[HomeFile]) -> list[HomeFile]:
    """Remove the files; returns those removed, without any that is in use or cannot be removed."""
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
    """The folder's files whose names match a pattern; the first match gives the kind."""
    if not folder.is_dir():
        return
    require_own_directory(folder)
    for path in folder.iterdir():
        kind = next((kind for pattern, kind in kinds.items() if path.match(pattern)), None)
        if kind is None or path.name in _LOCKS:
            continue
        # A running worker may rename or remove a file after the listing.
        with suppress(FileNotFoundError):
            status = path.lstat()
            is_scratch = kind is FileKind.LEFTOVER and stat.S_ISDIR(status.st_mode)
            if stat.S_ISREG(status.st_mode) or stat.S_ISSOCK(status.st_mode) or is_scratch:
                size = sum(inner.lstat().st_size for inner in path.rglob("*")) if is_scratch else status.st_size
                yield HomeFile(path, kind, size, datetime.fromtimestamp(status.st_mtime, UTC))
