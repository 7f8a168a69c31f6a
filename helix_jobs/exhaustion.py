"""Exhaustion: this machine, or a limit on this process, has nothing left to give.

No request is to blame for that. Who meets it hands its work back, and another process, later, goes on with it.

Trade-off: a request that itself exhausted the machine would come again and again, as its attempts do not count. No step
opens files or starts threads for a request's sake, and memory that it asks for in vain is no ``OSError``.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import Final, TypeGuard

_SHORTAGES: Final = {
    errno.EMFILE: "this process may open no more descriptors{limit}; raise the limit (ulimit -n, LimitNOFILE of a "
    "systemd service) or find what holds them",
    errno.ENFILE: "this machine can open no more descriptors; raise fs.file-max or end what holds them",
    errno.ENOMEM: "the system gives no more memory; free some, or raise the limit (ulimit -v, a container's memory)",
    errno.EAGAIN: "the system gives no more threads or processes; raise the limit (ulimit -u, TasksMax, a container's "
    "pids limit)",
}


def is_exhaustion(error: BaseException) -> TypeGuard[OSError]:
    """Whether the system refused for want of descriptors, memory, threads or processes."""
    return isinstance(error, OSError) and error.errno in _SHORTAGES


def explain_exhaustion(error: OSError) -> str:
    """Say what is missing and how to come by it; ``error`` is one that ``is_exhaustion`` knows."""
    return _SHORTAGES[error.errno or errno.EMFILE].format(limit=_descriptor_limit())


def missing_descriptor() -> OSError | None:
    """Open a file that is always there; the error if that takes a descriptor more than this process may have."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        return error if error.errno in {errno.EMFILE, errno.ENFILE} else None
    return None


def _descriptor_limit() -> str:
    if sys.platform == "win32":
        return ""
    import resource

    return f" (its limit is {resource.getrlimit(resource.RLIMIT_NOFILE)[0]})"
