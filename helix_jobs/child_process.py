"""ChildProcess: a child that exchanges lines with this process, over its standard input and output."""

from __future__ import annotations

import subprocess
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class ChildProcess:
    """A running child. A thread reads its lines, so that callers can wait for them with a deadline.

    The engine's ``BoundedProcess`` is another class: its thread also writes, as its child may stop reading within a
    long line.

    Args:
        command: The program and its arguments.
        name: The thread's name.
        on_line: Called on the thread with each line.
        on_end: Called on the thread, with the child, after the last line; the child may still run then.
        options: Passed to ``Popen``: environment, standard error, session.

    Raises:
        OSError: The child cannot be started.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        name: str,
        on_line: Callable[[bytes], None],
        on_end: Callable[[ChildProcess], None],
        **options: Any,  # noqa: ANN401  (Popen's)
    ) -> None:
        self._process = subprocess.Popen(  # noqa: S603  (no shell; which program is the caller's choice)
            list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, **options
        )
        self._reader = threading.Thread(target=self._read, args=(on_line, on_end), name=name, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    def send(self, line: bytes) -> None:
        """Write a line, which includes its line end.

        Raises:
            OSError: The child is gone.
            ValueError: The child's input is closed.
        """
        assert self._process.stdin is not None, "opened as a pipe"
        self._process.stdin.write(line)
        self._process.stdin.flush()

    def close_input(self) -> None:
        """Close the child's input: no more lines come. Safe to repeat."""
        assert self._process.stdin is not None, "opened as a pipe"
        with suppress(OSError):  # the child may be gone already
            self._process.stdin.close()

    def wait(self, seconds: float | None = None) -> int | None:
        """Wait for the child's end; returns the exit code, or None if it still runs after so many seconds."""
        with suppress(subprocess.TimeoutExpired):
            return self._process.wait(seconds)
        return None

    def kill(self) -> None:
        """Kill the child. Safe to repeat."""
        with suppress(OSError):
            self._process.kill()

    def join(self) -> None:
        """Wait until the child has ended and all its lines were passed on."""
        self._process.wait()
        self._reader.join()

    def _read(self, on_line: Callable[[bytes], None], on_end: Callable[[ChildProcess], None]) -> None:
        assert self._process.stdout is not None, "opened as a pipe"
        with self._process.stdout as lines:
            for line in lines:
                on_line(line)
        on_end(self)
