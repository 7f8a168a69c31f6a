"""Writes a file that the user named: whole or not at all, and never into an existing regular file.

The content goes to a new file in the same directory, which takes the name at the end. So a reader never sees half of
it, and a failure leaves the earlier file. A pipe or a device cannot be replaced, so it is written to directly.
"""

from __future__ import annotations

import errno
import glob
import os
import re
import secrets
import stat
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from helix_jobs.errors import ConfigurationError
from helix_jobs.files import PRIVATE_FILE, atomic_write

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

# A pipe's reader may start a moment later.
PIPE_PATIENCE: Final = 5.0
_OWN_DESCRIPTOR: Final = re.compile(r"/(?:dev/fd|proc/self/fd)/(\d+)")
_STANDARD_STREAMS: Final = {"/dev/stdout": 1, "/dev/stderr": 2}
_NEW_FILE: Final = 0o666
# The permissions kept from a replaced file: not setuid and the like.
_PERMISSIONS: Final = 0o777
_GROUP: Final = 0o070


@contextmanager
def written_whole(path: Path, *, follow: bool = True) -> Iterator[BinaryIO]:
    """A binary stream for the new content of ``path``, which appears there when the block succeeds.

    A replaced file's mode is kept, and its owner as far as this user may set it. Trade-off: other hard links keep the
    old content; but a failed write into the file itself would leave half of it.

    Args:
        path: The file.
        follow: Whether a link leads to the file to replace; otherwise the link itself is replaced, for a path that the
            user did not type.

    Raises:
        ConfigurationError: The file cannot be written; the message names the path and a remedy.
    """
    try:
        own = _own_descriptor(path)
        if own is not None:
            with os.fdopen(os.dup(own), "wb") as stream:
                yield stream
        elif path.exists() and not path.is_file():
            with _open_in_place(path) as stream:
                yield stream
        else:
            with _replaced(path.resolve() if follow else path) as stream:
                yield stream
    except BrokenPipeError:
        raise  # the pipe's reader has gone; the caller ends quietly
    except RuntimeError as error:  # pathlib's, over a loop of links
        if "loop" not in str(error).lower():
            raise
        raise ConfigurationError(f"{path} is a loop of symbolic links; choose another place") from error
    except OSError as error:
        raise cannot_be_written(path, error) from error


def part_of_input(path: Path, source: object, what: str) -> str | None:
    """Say how a file to be written is part of what is read; None where it is not.

    Args:
        path: The file to be written.
        source: What is read; a file, a folder or a pattern of files can hold the file, nothing else can.
        what: What the source is called, such as ``table``.
    """
    if not isinstance(source, str | os.PathLike):
        return None
    place = Path(source)
    if place.is_dir():
        return f"lies among the files of the {what}" if place.resolve() in path.resolve().parents else None
    if _is_same_file(path, place):
        return f"is the {what} itself"
    found = glob.iglob(os.fspath(source), recursive=True)  # noqa: PTH207  (the pattern may be absolute)
    return f"is one of the files of the {what}" if any(_is_same_file(path, Path(one)) for one in found) else None


def _is_same_file(path: Path, other: Path) -> bool:
    with suppress(OSError, ValueError):  # what cannot be looked at, such as a broken link, is not what was read
        return path.samefile(other)
    return False


def _own_descriptor(path: Path) -> int | None:
    """This process's descriptor that the path names: opening it anew would empty a file behind it."""
    if str(path) in _STANDARD_STREAMS:
        return _STANDARD_STREAMS[str(path)]
    found = _OWN_DESCRIPTOR.fullmatch(str(path))
    return None if found is None else int(found.group(1))


def _open_in_place(path: Path) -> BinaryIO:
    if not path.is_fifo() or sys.platform == "win32":
        return path.open("wb")
    deadline = time.monotonic() + PIPE_PATIENCE
    while True:
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO or time.monotonic() >= deadline:
                raise
            time.sleep(0.05)
        else:
            os.set_blocking(descriptor, True)
            return os.fdopen(descriptor, "wb")


@contextmanager
def _replaced(path: Path) -> Iterator[BinaryIO]:
    before = path.stat() if path.exists() and not path.is_symlink() else None
    # Private until the replaced file's permissions are set.
    mode = _NEW_FILE if before is None else PRIVATE_FILE
    with atomic_write(path, f".helix-{secrets.token_hex(8)}.tmp", mode) as stream:
        yield stream
        stream.flush()
        if before is not None:
            _keep_permissions(stream.fileno(), before)
        os.fsync(stream.fileno())


def _keep_permissions(descriptor: int, before: os.stat_result) -> None:
    if sys.platform == "win32":
        return
    mode = stat.S_IMODE(before.st_mode) & _PERMISSIONS
    try:
        os.fchown(descriptor, before.st_uid, before.st_gid)
    except PermissionError:
        try:
            os.fchown(descriptor, -1, before.st_gid)
        except PermissionError:
            mode &= ~_GROUP  # the file belongs to another group now
    os.fchmod(descriptor, mode)


def cannot_be_written(what: object, error: OSError) -> ConfigurationError:
    """Return the same error for every way of naming the file."""
    return ConfigurationError(f"{what} cannot be written: {error.strerror or error}; {_remedy(error)}")


def _remedy(error: OSError) -> str:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return "free some space there, or choose another place"
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return "correct the permissions, or choose another place"
    if error.errno == errno.ENXIO:
        return "nobody reads that pipe: start its reader first"
    return "choose another place"
