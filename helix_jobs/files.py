"""Files and directories that only this user can read or replace: they hold prompts, answers, logs and code.

Any user who can write to a directory can put a link or a file there. So this module follows no symbolic link, and never
opens, writes or changes the mode of another user's file. Root's files are trusted. On Windows the checks pass, as modes
and owners say nothing there.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import sys
from contextlib import contextmanager, suppress
from secrets import token_hex
from typing import TYPE_CHECKING, Final, cast

from helix_jobs.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import BinaryIO

PRIVATE_DIRECTORY: Final = 0o700
PRIVATE_FILE: Final = 0o600
_OTHERS: Final = 0o077
_WRITABLE_BY_OTHERS: Final = 0o022
_ROOT: Final = 0
# Absent on Windows. Opening must not wait on a pipe that somebody put in a file's place.
_GUARDED: Final = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


def open_private(path: Path, mode: str) -> BinaryIO:
    """Open one of Helix's own files; a new file gets mode 0600, whatever the umask.

    Raises:
        ConfigurationError: It is a symbolic link, no plain file, or another user's.
        OSError: It cannot be opened.
    """
    # Path.open takes no opener.
    return cast("BinaryIO", open(path, mode, opener=lambda _, flags: private_descriptor(path, flags)))


def private_descriptor(path: Path, flags: int) -> int:
    """``os.open`` for one of Helix's own files; errors as for `open_private`.

    A file is emptied (``O_TRUNC``) only after it proves to be this user's.
    """
    try:
        descriptor = os.open(path, (flags & ~os.O_TRUNC) | _GUARDED, PRIVATE_FILE)
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.ENXIO}:  # a link; a pipe without a reader
            _refuse_strangers(path, path.lstat(), directory=False)
        raise
    try:
        _refuse_strangers(path, os.fstat(descriptor), directory=False)
        if flags & os.O_TRUNC:
            os.ftruncate(descriptor, 0)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_private(path: Path) -> bytes:
    """The content of one of Helix's own files; errors as for `open_private`."""
    with open_private(path, "rb") as stream:
        return stream.read()


def write_private(path: Path, content: bytes) -> None:
    """Write a file with this content at ``path``, whole or not at all. An existing file is replaced, not opened."""
    with atomic_write(path, f".{path.name}-{token_hex(4)}.partial") as stream:
        stream.write(content)


@contextmanager
def atomic_write(path: Path, partial: str, mode: int = PRIVATE_FILE) -> Iterator[BinaryIO]:
    """A stream for a new file, which becomes ``path`` when the block succeeds; otherwise it is removed.

    Args:
        path: The final path; an existing file is replaced, not opened.
        partial: The file's name in the same directory until then; nothing of that name may exist.
        mode: The file's mode, before the umask.

    Raises:
        OSError: The file cannot be made or renamed.
    """
    temporary = path.with_name(partial)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    descriptor = os.open(temporary, flags, mode)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's content, as ``sha256sum`` prints it."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def touch_private(path: Path) -> None:
    """Make an empty file with mode 0600; an existing file is left alone. Errors as for `open_private`."""
    os.close(private_descriptor(path, os.O_WRONLY | os.O_CREAT))


def note_use(path: Path) -> None:
    """Set a file's time to now: `helix purge` goes by a file's last use, and not every disk records reads."""
    with suppress(OSError):  # a read-only home
        os.utime(path)


def make_private_directory(path: Path) -> Path:
    """Make a directory with mode 0700, or make sure that an existing one is this user's; return it.

    Raises:
        ConfigurationError: It is a symbolic link, no directory, or another user's.
        OSError: It cannot be made.
    """
    try:
        path.mkdir(mode=PRIVATE_DIRECTORY, parents=True)
    except FileExistsError:
        require_own_directory(path)
    return path


def require_own_directory(path: Path) -> None:
    """Make sure that a directory is this user's; a missing one is fine.

    Raises:
        ConfigurationError: It is a symbolic link, no directory, or another user's.
    """
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    _refuse_strangers(path, status, directory=True)


def is_own_program(path: Path) -> bool:
    """Whether a file may be executed: a plain file of this user or root, which nobody else may write to."""
    try:
        status = path.lstat()
        _refuse_strangers(path, status, directory=False)
    except (OSError, ConfigurationError):
        return False
    return sys.platform == "win32" or not status.st_mode & _WRITABLE_BY_OTHERS


def is_open_to_others(path: Path) -> bool:
    """Whether group or others have any access; never on Windows, whose modes say nothing."""
    return sys.platform != "win32" and bool(path.stat().st_mode & _OTHERS)


def _refuse_strangers(path: Path, status: os.stat_result, *, directory: bool) -> None:
    """Refuse ``path`` unless it is this user's directory or plain file."""
    kind = "directory" if directory else "file"
    if stat.S_ISLNK(status.st_mode):
        raise ConfigurationError(f"{path} is a symbolic link, which Helix does not follow; put a {kind} in its place")
    if not (stat.S_ISDIR if directory else stat.S_ISREG)(status.st_mode):
        raise ConfigurationError(f"{path} is no {kind}; remove it, or set another HELIX_HOME")
    if sys.platform != "win32" and status.st_uid not in {os.geteuid(), _ROOT}:
        raise ConfigurationError(
            f"{path} belongs to another user (id {status.st_uid}); set HELIX_HOME to a directory of your own, "
            "or run Helix as that user"
        )
