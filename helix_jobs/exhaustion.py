"""Exhaustion: this machine has run out of a resource, or this process has reached a limit.

No request is to blame. A process that meets exhaustion hands its work back, and another process continues it later.

Trade-off: attempts that meet exhaustion do not count, so a request that itself exhausted the machine would return for
ever. But no step opens files or starts threads for one request. A request may ask for too much memory, however. So a
``MemoryError`` is a shortage and no exhaustion, and its attempts count: at its last attempt the job runs alone, which
shows whether it is the cause.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import Final

_SHORTAGES: Final = {
    errno.EMFILE: "this process may open no more descriptors{limit}; raise the limit (ulimit -n, LimitNOFILE of a "
    "systemd service) or find what holds them",
    errno.ENFILE: "this machine can open no more descriptors; raise fs.file-max or end what holds them",
    errno.ENOMEM: "the system gives no more memory; free some, or raise the limit (ulimit -v, a container's memory)",
    errno.EAGAIN: "the system gives no more threads or processes; raise the limit (ulimit -u, TasksMax, a container's "
    "pids limit)",
}


# Python's whole message when the system refuses a thread.
_NO_THREAD: Final = "can't start new thread"


def is_exhaustion(error: BaseException) -> bool:
    """Whether the system refused for lack of descriptors, memory, threads or processes."""
    if isinstance(error, RuntimeError):
        return str(error) == _NO_THREAD
    return isinstance(error, OSError) and error.errno in _SHORTAGES


def is_shortage(error: BaseException) -> bool:
    """Whether any of the machine's resources was missing. A lack of memory may be the request's own fault."""
    return isinstance(error, MemoryError) or is_exhaustion(error)


def explain_exhaustion(error: BaseException) -> str:
    """Say which resource is missing and how to get more; ``error`` is one that ``is_shortage`` accepts."""
    match error:
        case MemoryError():
            number = errno.ENOMEM
        case OSError(errno=int(number)):
            pass
        case _:
            number = errno.EAGAIN
    return _SHORTAGES[number].format(limit=_descriptor_limit())


def missing_descriptor() -> OSError | None:
    """Open a file that always exists; returns the error if this process may have no more descriptors."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        return error if error.errno in {errno.EMFILE, errno.ENFILE} else None
    return None


def explain_missing_descriptor() -> str:
    """Why nothing can be opened now; empty if a descriptor is available.

    Servers, files and libraries report this in other words: "cannot be opened", "does not answer".
    """
    missing = missing_descriptor()
    return "" if missing is None else explain_exhaustion(missing)


def _descriptor_limit() -> str:
    if sys.platform == "win32":
        return ""
    import resource

    return f" (its limit is {resource.getrlimit(resource.RLIMIT_NOFILE)[0]})"
