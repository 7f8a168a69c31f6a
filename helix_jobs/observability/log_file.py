"""Log files of processes that write to an inherited descriptor: bounded and private; one earlier file is kept.

Python's own handlers would miss the output of libraries and children. So the file's size is checked when it is opened,
and now and then while a process writes to it. A full file is copied and then emptied instead of renamed, as its
writers, children included, hold descriptors of it. They append, so they go on at its new beginning. Trade-off: lines
written between the copy and the cut are lost.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from helix_jobs.files import open_private, write_private

if TYPE_CHECKING:
    from pathlib import Path
    from typing import BinaryIO

LOG_BYTES: Final = 8_000_000


def open_log(path: Path) -> BinaryIO:
    """Open a log to append to; a log that has reached its bound first replaces ``NAME.1``.

    Raises:
        ConfigurationError: The log is a symbolic link, no plain file, or another user's.
        OSError: The log cannot be opened.
    """
    log = open_private(path, "ab")
    if os.fstat(log.fileno()).st_size < LOG_BYTES:
        return log
    log.close()
    path.replace(_predecessor(path))
    return open_private(path, "ab")


def cut_log(path: Path, descriptor: int) -> bool:
    """Keep the end of a full log as ``NAME.1`` and empty the log; True if that was done.

    Args:
        path: The log's name.
        descriptor: The descriptor this process writes to. A descriptor of any other file is left alone.
    """
    try:
        status = os.fstat(descriptor)
        if status.st_size < LOG_BYTES or not os.path.samestat(status, path.lstat()):
            return False
        with open_private(path, "rb") as stream:
            stream.seek(-LOG_BYTES, os.SEEK_END)
            write_private(_predecessor(path), stream.read())
        os.ftruncate(descriptor, 0)
    except OSError:  # a full disk, or Windows
        return False
    return True


def _predecessor(path: Path) -> Path:
    return path.with_name(f"{path.name}.1")
