"""The child's side of a ``BoundedProcess``: its streams, and its limits of time and memory.

Where the system can, the process limits itself: a timer of processor time ends it in the middle of any C code, and an
address-space limit turns too large an allocation into a MemoryError. Elsewhere (Windows) only the parent watches it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import suppress
from typing import IO, Any


def begin() -> tuple[dict[str, Any], IO[bytes], IO[bytes]]:
    """Read the setup, which is the first line, and limit this process to its ``seconds`` and ``memory_bytes``.

    Returns:
        The setup, the stream of requests that follow it, and the stream for answers.
    """
    requests, answers = _private_streams()
    _leave_signals_to_the_parent()
    setup: dict[str, Any] = json.loads(requests.readline())
    bound_time(setup["seconds"])
    bound_memory(setup["memory_bytes"])
    return setup, requests, answers


def _private_streams() -> tuple[IO[bytes], IO[bytes]]:
    """Take standard input and output for requests and answers: a library's prints must not mix with the answers."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return requests, answers


def _leave_signals_to_the_parent() -> None:
    """Ignore signals that a supervisor or Ctrl-C sends to all processes; the parent ends this process."""
    if hasattr(signal, "SIGTERM"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def send(answers: IO[bytes], answer: dict[str, Any]) -> None:
    """Write one answer on a line of its own."""
    answers.write(json.dumps(answer).encode() + b"\n")
    answers.flush()


def bound_time(seconds: float) -> None:
    """Let the system end this process after ``seconds`` of processor time; 0 removes the limit."""
    if sys.platform != "win32":
        signal.setitimer(signal.ITIMER_PROF, seconds)


def bound_memory(more_bytes: int) -> None:
    """Let allocations fail once the process has grown by ``more_bytes`` from now on; 0 sets no limit."""
    if sys.platform == "linux" and more_bytes:
        import resource

        with open("/proc/self/statm", "rb") as statm:  # noqa: PTH123  (no file, but the kernel's answer)
            now = int(statm.read().split()[0]) * resource.getpagesize()
        with suppress(ValueError, OSError):  # a lower limit is set already
            resource.setrlimit(resource.RLIMIT_AS, (now + more_bytes, resource.RLIM_INFINITY))
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
