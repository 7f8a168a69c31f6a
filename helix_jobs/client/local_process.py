"""LocalProcess: a worker that a command starts as a child process. The child's side is in ``worker.child``."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Protocol

from helix_jobs.child_process import ChildProcess
from helix_jobs.observability.log_file import open_log
from helix_jobs.python_child import import_path, python_command

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from helix_jobs.settings import Settings

logger = logging.getLogger(__name__)

STOP_SECONDS: Final = 15.0

Event = dict[str, Any]


class StartedWorker(Protocol):
    """A worker that a command started: a ``LocalProcess``, or a thread if the broker is in this process."""

    def leave(self, *, now: bool) -> None:
        """Stop the worker as soon as no command uses it; with ``now``, it then hands its jobs back."""

    def wait_stopped(self) -> None:
        """Wait until it has stopped."""


class LocalProcess:
    """A worker process."""

    def __init__(self, settings: Settings, log_path: Path, emit: Callable[[Event], None]) -> None:
        self._patience = settings.shutdown_grace + STOP_SECONDS
        self._emit = emit
        with open_log(log_path) as log:
            self._child = ChildProcess(
                python_command("-m", "helix_jobs.worker.child"),
                name="helix-local-worker",
                on_line=self._hear,
                on_end=lambda child: emit({"event": "ended", "code": child.wait()}),
                env={**os.environ, **import_path(), **settings.to_environment()},
                stderr=log,
                **_detached(),
            )

    def leave(self, *, now: bool) -> None:
        """Close the child's input: it stops when no command uses it; with ``now``, it then hands its jobs back."""
        if now:
            with suppress(OSError, ValueError):  # it is gone, or was left before
                self._child.send(b"now\n")
        self._child.close_input()

    def wait_stopped(self) -> None:
        """Wait until the process has stopped; kill it if it does not."""
        if self._child.wait(self._patience) is None:
            logger.warning("the local worker does not stop; it is killed, and its jobs return to the queue later")
            self._child.kill()
        self._child.join()

    def _hear(self, line: bytes) -> None:
        event = _parse(line)
        if event is not None:
            self._emit(event)


def _detached() -> dict[str, Any]:
    """Popen options that keep this terminal's Ctrl-C from the child: the parent handles it."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"start_new_session": True}


def _parse(line: bytes) -> Event | None:
    """Read one report; None for a line that a library printed."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) else None
