"""Files and directories that nobody but this user can read or exchange: they hold prompts, answers, logs and code.

Whoever can put something into a directory can put a link or a file of his own there. So nothing here follows a symbolic
link, and nothing of another user's is opened, written or closed to its owner. Root's own files are trusted. On Windows,
whose modes and owners say nothing, the checks pass.
"""

from __future__ import annotations

import errno
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
# Absent on Windows. A pipe that somebody left in a file's place must not be waited for.
_GUARDED: Final = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


def open_private(path: Path, mode: str) -> BinaryIO:
    """Open one of Helix's own files; one that is made is made with mode 0600, whatever the umask.

    Raises:
        ConfigurationError: It is a symbolic link, no plain file, or another user's.
        OSError: It cannot be opened.
    """
    # Not Path.open, which takes no opener.
    return cast("BinaryIO", open(path, mode, opener=lambda _, flags: private_descriptor(path, flags)))


def private_descriptor(path: Path, flags: int) -> int:
    """``os.open`` for one of Helix's own files; errors as for `open_private`.

    A file is emptied (``O_TRUNC``) only after it was found to be this user's.
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
    """Put a file of this content in ``path``'s place, whole or not at all. What stood there is not opened."""
    with atomic_write(path, f".{path.name}-{token_hex(4)}.partial") as stream:
        stream.write(content)


@contextmanager
def atomic_write(path: Path, partial: str, mode: int = PRIVATE_FILE) -> Iterator[BinaryIO]:
    """A stream for a new file, which takes the name ``path`` when the block ends well; otherwise nothing is left of it.

    Args:
        path: Where to; what stood there is replaced and not opened.
        partial: The file's name beside it until then; nothing of that name may be there.
        mode: Of the file, before the umask.

    Raises:
        OSError: It cannot be made or take the name.
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


def touch_private(path: Path) -> None:
    """Make an empty file with mode 0600; one that is there is left alone. Errors as for `open_private`."""
    os.close(private_descriptor(path, os.O_WRONLY | os.O_CREAT))


def note_use(path: Path) -> None:
    """Set a file's time to now: `helix purge` goes by when a file was last used, and not every disk notes reading."""
    with suppress(OSError):  # a home that may only be read
        os.utime(path)


def make_private_directory(path: Path) -> Path:
    """Make a directory with mode 0700, or make sure that the one there is this user's; return it.

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
    """Make sure that a directory is this user's; one that is not there is fine.

    Raises:
        ConfigurationError: It is a symbolic link, no directory, or another user's.
    """
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    _refuse_strangers(path, status, directory=True)


def is_own_program(path: Path) -> bool:
    """Whether a file may be executed: a plain file of this user's (or root's) that nobody else may write to."""
    try:
        status = path.lstat()
        _refuse_strangers(path, status, directory=False)
    except (OSError, ConfigurationError):
        return False
    return sys.platform == "win32" or not status.st_mode & _WRITABLE_BY_OTHERS


def is_open_to_others(path: Path) -> bool:
    """Whether group or others may do anything with it; never on Windows, whose modes say nothing."""
    return sys.platform != "win32" and bool(path.stat().st_mode & _OTHERS)


def _refuse_strangers(path: Path, status: os.stat_result, *, directory: bool) -> None:
    """Judge what stands at ``path``, which should be a directory or a plain file."""
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
