"""Exhaustion: this machine, or a limit on this process, has nothing left to give.

No request is to blame for that. Who meets it hands its work back, and another process, later, goes on with it.

Trade-off: a request that itself exhausted the machine would come again and again, as its attempts do not count. No step
opens files or starts threads for a request's sake. Memory is another matter, as a request may ask for too much of it:
a ``MemoryError`` is no exhaustion but a shortage, and after one attempts count, so that a job that alone causes it is
found: at its last attempt it runs alone.
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


# All that Python says where the system refuses a thread.
_NO_THREAD: Final = "can't start new thread"


def is_exhaustion(error: BaseException) -> bool:
    """Whether the system refused for want of descriptors, memory, threads or processes."""
    if isinstance(error, RuntimeError):
        return str(error) == _NO_THREAD
    return isinstance(error, OSError) and error.errno in _SHORTAGES


def is_shortage(error: BaseException) -> bool:
    """Whether anything that the machine gives was missing; memory alone may be the fault of who asked for it."""
    return isinstance(error, MemoryError) or is_exhaustion(error)


def explain_exhaustion(error: BaseException) -> str:
    """Say what is missing and how to come by it; ``error`` is one that ``is_shortage`` knows."""
    match error:
        case MemoryError():
            number = errno.ENOMEM
        case OSError(errno=int(number)):
            pass
        case _:
            number = errno.EAGAIN
    return _SHORTAGES[number].format(limit=_descriptor_limit())


def missing_descriptor() -> OSError | None:
    """Open a file that is always there; the error if that takes a descriptor more than this process may have."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        return error if error.errno in {errno.EMFILE, errno.ENFILE} else None
    return None


def explain_missing_descriptor() -> str:
    """Why nothing can be opened now, for whoever was told something else; empty where a descriptor can be had.

    Servers, files and libraries have their own words for it: "cannot be opened", "does not answer".
    """
    missing = missing_descriptor()
    return "" if missing is None else explain_exhaustion(missing)


def _descriptor_limit() -> str:
    if sys.platform == "win32":
        return ""
    import resource

    return f" (its limit is {resource.getrlimit(resource.RLIMIT_NOFILE)[0]})"
