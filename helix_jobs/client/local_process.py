"""LocalProcess: a worker that a command starts for itself, as a child process. The child's half: ``worker.child``."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Protocol

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
    """A worker that a command started: a ``LocalProcess``, or a thread where the broker lives in this process."""

    def leave(self, *, now: bool) -> None:
        """Stop it as soon as no command uses it; with ``now`` it hands its jobs back then."""

    def wait_stopped(self) -> None:
        """Wait until it has stopped."""


class LocalProcess:
    """A worker process."""

    def __init__(self, settings: Settings, log_path: Path, emit: Callable[[Event], None]) -> None:
        self._patience = settings.shutdown_grace + STOP_SECONDS
        with open_log(log_path) as log:
            self._process = subprocess.Popen(  # noqa: S603  (our own module, no shell)
                python_command("-m", "helix_jobs.worker.child"),
                env={**os.environ, **import_path(), **settings.to_environment()},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                **_detached(),
            )
        self._reader = threading.Thread(target=self._read, args=(emit,), name="helix-local-worker", daemon=True)
        self._reader.start()

    def leave(self, *, now: bool) -> None:
        """Close the child's input: it stops when nobody uses it; with ``now`` it hands its jobs back then."""
        stdin = self._process.stdin
        if stdin is None:
            return
        with suppress(OSError):
            if now:
                stdin.write(b"now\n")
                stdin.flush()
        with suppress(OSError):
            stdin.close()

    def wait_stopped(self) -> None:
        """Wait until it has stopped; kill it if it does not go."""
        try:
            self._process.wait(self._patience)
        except subprocess.TimeoutExpired:
            logger.warning("the local worker does not stop and is killed; its jobs are handed back later")
            self._process.kill()
            self._process.wait()
        self._reader.join()

    def _read(self, emit: Callable[[Event], None]) -> None:
        if self._process.stdout is not None:
            with self._process.stdout as lines:
                for line in lines:
                    event = _parse(line)
                    if event is not None:
                        emit(event)
        emit({"event": "ended", "code": self._process.wait()})


def _detached() -> dict[str, Any]:
    """Keep the child out of reach of this terminal's Ctrl-C, which is for the parent to translate."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"start_new_session": True}


def _parse(line: bytes) -> Event | None:
    """Read one report; what libraries print is none."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) else None
