"""A worker that a command starts for itself: a child process, or a thread where the broker lives in memory.

The child is controlled through its pipes, which works the same on every system: it reports on its standard output, one
JSON object a line. When its standard input ends, because its parent is done or was killed, it stops as soon as no other
command uses it.
"""

from __future__ import annotations

import _thread
import json
import logging
import os
import subprocess
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.client.local_users import LocalUsers
from helix_jobs.errors import HelixError, HomeInUseError
from helix_jobs.observability.log_file import cut_log, open_log
from helix_jobs.periodic import Periodic
from helix_jobs.python_child import import_path, python_command

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from helix_jobs.settings import Settings

logger = logging.getLogger(__name__)

STOP_SECONDS: Final = 15.0
# Under HELIX_HOME.
LOG_NAME: Final = "worker.log"
_LOG_SECONDS: Final = 30.0

Event = dict[str, Any]


class LocalProcess:
    """A worker process."""

    def __init__(self, settings: Settings, log_path: Path, emit: Callable[[Event], None]) -> None:
        self._patience = settings.shutdown_grace + STOP_SECONDS
        with open_log(log_path) as log:
            self._process = subprocess.Popen(  # noqa: S603  (our own module, no shell)
                python_command("-m", "helix_jobs.client.local_process"),
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


class LocalThread:
    """A worker on a thread of this process, for a broker that lives in its memory."""

    def __init__(self, settings: Settings, emit: Callable[[Event], None]) -> None:
        from helix_jobs.worker.process import StopButton

        self._button = StopButton()
        self._thread = threading.Thread(target=self._run, args=(settings, emit), name="helix-local-worker", daemon=True)
        self._thread.start()

    def leave(self, *, now: bool) -> None:
        """Press the button; nobody else uses a worker of this process."""
        from helix_jobs.worker.process import StopRequest

        for _ in range(2 if now else 1):
            self._button.press(StopRequest.INTERRUPT)

    def wait_stopped(self) -> None:
        """Wait until it has stopped."""
        self._thread.join()

    def _run(self, settings: Settings, emit: Callable[[Event], None]) -> None:
        code = _run_reporting(settings, self._button, emit, handle_signals=False)
        emit({"event": "ended", "code": code})


def _run_reporting(settings: Settings, button: Any, emit: Callable[[Event], None], *, handle_signals: bool) -> int:  # noqa: ANN401
    """Run a worker; report progress, readiness and errors as events."""
    from helix_jobs.worker.process import run_worker

    try:
        return run_worker(
            settings,
            on_progress=lambda line: emit({"event": "progress", "message": line}),
            on_ready=lambda _: emit({"event": "ready"}),
            stop=button,
            handle_signals=handle_signals,
        )
    except HelixError as error:
        emit(_as_event(error))
        return error.exit_code
    except Exception as error:
        logger.exception("the worker failed")
        # Only its kind: an error of a library may quote anything.
        emit({"event": "error", "kind": "HelixError", "message": f"the worker failed: {type(error).__name__}"})
        return 1


def _as_event(error: HelixError) -> Event:
    return {"event": "error", "kind": type(error).__name__, "message": str(error)}


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


def main() -> int:
    """The child: run a worker until standard input has ended and no command uses it."""
    from helix_jobs.observability.logging import configure_logging
    from helix_jobs.settings import Settings
    from helix_jobs.worker.process import StopButton, StopRequest

    settings = Settings.from_environment()
    configure_logging(settings.log_level, settings.log_format)
    button = StopButton()
    home = settings.make_home()
    users = LocalUsers(home)
    # It does not block: a worker of another database holds the lock until the last command under this home leaves, and
    # the parent of this child is one of them.
    if not users.worker.acquire():
        error = HomeInUseError(f"another local worker already runs under {home}; end the commands that use it")
        _report(_as_event(error))
        return error.exit_code
    log = home / LOG_NAME
    Periodic("helix-log", lambda: cut_log(log, sys.stderr.fileno()), _LOG_SECONDS).start()

    def watch() -> None:
        presses = 1
        for line in sys.stdin:
            if line.strip() == "now":
                presses = 2
        users.close_behind_the_last()
        for _ in range(presses):
            button.press(StopRequest.INTERRUPT)
        if not button.armed:
            # Nobody reads the button while the models load.
            _thread.interrupt_main()

    threading.Thread(target=watch, name="helix-parent", daemon=True).start()
    return _run_reporting(settings, button, _report, handle_signals=True)


def _report(event: Event) -> None:
    """Tell the parent, as one line."""
    try:
        sys.stdout.write(f"{json.dumps(event)}\n")
        sys.stdout.flush()
    except OSError:
        # The parent has gone; another command may still use this worker. What is in the buffer must go somewhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
