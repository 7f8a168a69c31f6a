"""Command: starts a program of the user's for each event, with the event as JSON on its standard input."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from helix_jobs.errors import NotDeliveredError

if TYPE_CHECKING:
    from helix_jobs.notify.event import Event

_LONGEST_SECONDS: Final = 60.0
# What a program that is told of a batch has no use for.
_SECRETS: Final = (
    "HELIX_WEBHOOK_SECRET",
    "HELIX_WEBHOOK_URL",
    "HELIX_NOTIFY_APPRISE",
    "HELIX_API_KEYS",
    "HELIX_ENDPOINT_KEY",
)


class Command:
    """A channel. No shell reads the line, and what the program prints is not kept.

    Args:
        line: The program and its arguments, as a shell would split them.
        longest: Seconds after which the program is ended.
    """

    name: Final = "command"

    def __init__(self, line: str, *, longest: float = _LONGEST_SECONDS) -> None:
        self._arguments = shlex.split(line, posix=os.name != "nt")
        self._longest = longest

    def send(self, event: Event) -> str:
        """Run the program; returns how it ended, in words.

        Raises:
            NotDeliveredError: It cannot be started, takes too long, or ends with another exit code than 0.
        """
        environment = {name: value for name, value in os.environ.items() if name not in _SECRETS}
        program = self._arguments[0]
        try:
            process = subprocess.Popen(  # noqa: S603  (the user's own program, without a shell)
                self._arguments,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            raise NotDeliveredError(f"the program {program} cannot be started: {error.strerror}") from error
        try:
            process.communicate(event.body() + b"\n", timeout=self._longest)
        except subprocess.TimeoutExpired as error:
            raise NotDeliveredError(
                f"the program {program} did not end within {self._longest:.0f} s and was ended"
            ) from error
        finally:
            _end(process)
        if process.returncode:
            raise NotDeliveredError(f"the program {program} ended with exit code {process.returncode}")
        return f"{program} ended with exit code 0"


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the program, and what it has started."""
    if process.poll() is None:
        with suppress(OSError):
            if hasattr(os, "killpg"):
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
        process.wait()
