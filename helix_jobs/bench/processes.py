"""start_process: a worker or a server of the bench's own, which ends with the bench."""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from helix_jobs.errors import HelixError
from helix_jobs.python_child import import_path, python_command

if TYPE_CHECKING:
    from contextlib import ExitStack
    from pathlib import Path

    from helix_jobs.settings import Settings

_START_SECONDS: Final = 900.0  # a large model takes minutes
_STOP_SECONDS: Final = 30.0


def start_process(stack: ExitStack, settings: Settings, command: str, ready: str, directory: Path) -> tuple[int, str]:
    """Start a process that ends with the stack; returns its number, and the line that says that it is ready.

    It is measured, so it rests neither outside the user's hours nor for others.

    Raises:
        HelixError: It does not become ready.
    """
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HELIX_", "CELERY_"))}
    restless = replace(settings, hours=None, yield_when=None)
    log = directory / f"{command}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603  (our own modules, no shell)
            python_command("-m", "helix_jobs", command),
            env={**clean, **import_path(), **restless.to_environment(), "COLUMNS": "500"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    stack.callback(_stop, process)
    deadline = time.monotonic() + _START_SECONDS
    while True:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        found = next((line for line in lines if line.startswith(ready)), None)
        if found is not None:
            return process.pid, found
        if process.poll() is not None or time.monotonic() > deadline:
            raise HelixError(f"helix {command} did not start: {' | '.join(lines[-5:]) or '(no output)'}")
        time.sleep(0.05)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
