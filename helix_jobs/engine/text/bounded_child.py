"""What a ``BoundedProcess`` runs begins here: its own streams, and its own bounds of time and memory.

It bounds itself where the system can: a timer of processor time ends it in the middle of any C code, and a limit of its
address space turns too large an allocation into a MemoryError. Where there are none (Windows), the parent watches.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import suppress
from typing import IO, Any


def begin() -> tuple[dict[str, Any], IO[bytes], IO[bytes]]:
    """Read the setup, the first line, and bind this process by its ``seconds`` and ``memory_bytes``.

    Returns:
        The setup, the stream of the requests behind it, and the one for the answers.
    """
    requests, answers = _private_streams()
    _leave_signals_to_the_parent()
    setup: dict[str, Any] = json.loads(requests.readline())
    bound_time(setup["seconds"])
    bound_memory(setup["memory_bytes"])
    return setup, requests, answers


def _private_streams() -> tuple[IO[bytes], IO[bytes]]:
    """Standard input and output for ourselves: what a library prints must not get between the answers."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return requests, answers


def _leave_signals_to_the_parent() -> None:
    """Ignore what a supervisor or Ctrl-C sends to all processes; the parent says when it is over."""
    if hasattr(signal, "SIGTERM"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def send(answers: IO[bytes], answer: dict[str, Any]) -> None:
    """Write one answer on a line of its own."""
    answers.write(json.dumps(answer).encode() + b"\n")
    answers.flush()


def bound_time(seconds: float) -> None:
    """Let the system end this process after so much processor time; 0 takes the bound away."""
    if sys.platform != "win32":
        signal.setitimer(signal.ITIMER_PROF, seconds)


def bound_memory(more_bytes: int) -> None:
    """Let allocations fail when the process has grown by so much from now on; 0 sets no bound."""
    if sys.platform == "linux" and more_bytes:
        import resource

        with open("/proc/self/statm", "rb") as statm:  # noqa: PTH123  (no file, but the kernel's answer)
            now = int(statm.read().split()[0]) * resource.getpagesize()
        with suppress(ValueError, OSError):  # a lower limit is set already
            resource.setrlimit(resource.RLIMIT_AS, (now + more_bytes, resource.RLIM_INFINITY))
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
