"""Worker child: the worker behind ``submit --local``, run as a child process or on a thread of the command.

Pipes control the child, which works the same on every system. It reports on its standard output, one JSON object a
line. When its standard input ends, because its parent is done or was killed, it stops as soon as no other command uses
it.
"""

from __future__ import annotations

import _thread
import json
import logging
import os
import sys
import threading
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.errors import HelixError, HomeInUseError
from helix_jobs.local_users import LOG_NAME, LocalUsers
from helix_jobs.observability.log_file import cut_log
from helix_jobs.settings import Settings
from helix_jobs.time_limits import DEFAULT_TIME_LIMITS
from helix_jobs.worker.periodic import Periodic
from helix_jobs.worker.stop_requests import StopRequests

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

_LOG_SECONDS: Final = 30.0

Event = dict[str, Any]


class WorkerThread:
    """A worker on a thread of this process, for a broker in the process's memory.

    Args:
        settings: The effective settings.
        emit: Called on the worker's thread with progress, readiness, errors and the end.
    """

    def __init__(self, settings: Settings, emit: Callable[[Event], None]) -> None:
        self._requests = StopRequests()
        self._thread = threading.Thread(target=self._run, args=(settings, emit), name="helix-local-worker", daemon=True)
        self._thread.start()

    def leave(self, *, now: bool) -> None:
        """Ask the worker to stop; no other command uses it."""
        for _ in range(2 if now else 1):
            self._requests.request_stop(interrupt=True)

    def wait_stopped(self) -> None:
        """Wait until the worker has stopped."""
        self._thread.join()

    def _run(self, settings: Settings, emit: Callable[[Event], None]) -> None:
        code = _run_reporting(settings, self._requests, emit, handle_signals=False)
        emit({"event": "ended", "code": code})


def main() -> int:
    """Run a worker until standard input has ended and no command uses it; return the exit code."""
    from helix_jobs.observability.logging import configure_logging

    settings = Settings.from_environment()
    configure_logging(settings.log_level, settings.log_format)
    requests = StopRequests()
    home = settings.make_home()
    users = LocalUsers(home)
    # Not blocking: another database's worker holds the lock until the last command under this home leaves, and this
    # child's parent is one of those commands.
    if not users.worker.acquire():
        error = HomeInUseError(f"another local worker already runs under {home}; end the commands that use it")
        _report(_as_event(error))
        return error.exit_code
    log = home / LOG_NAME
    Periodic("log", lambda: cut_log(log, sys.stderr.fileno()), _LOG_SECONDS).start()
    threading.Thread(target=_watch_parent, args=(users, requests), name="helix-parent", daemon=True).start()
    return _run_reporting(settings, requests, _report, handle_signals=True)


def _watch_parent(users: LocalUsers, requests: StopRequests) -> None:
    """Ask for a stop when the parent has closed standard input and no other command uses this worker."""
    times = 1
    for line in sys.stdin:
        if line.strip() == "now":
            times = 2  # the second interrupt ends the worker at once
    users.close_behind_the_last()
    for _ in range(times):
        requests.request_stop(interrupt=True)
    if not requests.armed:
        # No thread reads the requests while the models load.
        _thread.interrupt_main()


def _run_reporting(
    settings: Settings, requests: StopRequests, emit: Callable[[Event], None], *, handle_signals: bool
) -> int:
    """Run a worker; report progress, readiness and errors as events."""
    # Imported late: a command that only starts a child process needs no part of a worker.
    from helix_jobs.worker.shifts import work_in_shifts

    try:
        return work_in_shifts(
            settings,
            time_limits=DEFAULT_TIME_LIMITS,
            on_progress=lambda line: emit({"event": "progress", "message": line}),
            on_ready=lambda _: emit({"event": "ready"}),
            stop=requests,
            handle_signals=handle_signals,
        )
    except HelixError as error:
        emit(_as_event(error))
        return error.exit_code
    except Exception as error:
        logger.exception("the worker failed")
        # Only the error's kind: a library's message may quote anything.
        emit({"event": "error", "kind": "HelixError", "message": f"the worker failed: {type(error).__name__}"})
        return 1


def _as_event(error: HelixError) -> Event:
    return {"event": "error", "kind": type(error).__name__, "message": str(error)}


def _report(event: Event) -> None:
    """Send an event to the parent, as one line."""
    try:
        sys.stdout.write(f"{json.dumps(event)}\n")
        sys.stdout.flush()
    except OSError:
        # The parent has gone, but another command may still use this worker. The buffered output must go somewhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
