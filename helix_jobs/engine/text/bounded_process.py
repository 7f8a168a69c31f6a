"""BoundedProcess: a Python process that answers line by line, with limited time and memory for each answer."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import psutil

from helix_jobs.python_child import import_path, python_command
from helix_jobs.wording import rough_size

# Seconds between checks of a process at work. Where the process limits itself, these are only a second line of defence.
_LOOK_EVERY: Final = 0.25
# Longest possible answer: the ids of a whole context. A longer one is not valid.
_MAX_ANSWER_BYTES: Final = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessLimits:
    """Limits of a process.

    Attributes:
        memory_bytes: Memory beyond what it holds when idle.
        wall_factor: Allowed wall-clock time as a multiple of the processor time: the process never waits, but machines
            stall.
    """

    memory_bytes: int = 2_000_000_000
    wall_factor: float = 20.0


class ProcessEndedError(Exception):
    """The process has ended. The message says how and follows "the process"."""


class RequestAtFaultError(ProcessEndedError):
    """The process exceeded its limits or crashed on a request."""


class BoundedProcess:
    """One process, and a thread that writes to it and reads from it: not every system can wait for pipes.

    Args:
        module: The module it runs, which answers each line of JSON on standard input with one line.
        limits: Its limits.

    Attributes:
        ready: Its answer to the setup.

    Raises:
        OSError, RuntimeError: The system has no process or thread left.
    """

    def __init__(self, module: str, limits: ProcessLimits) -> None:
        self._limits = limits
        self.ready: dict[str, Any] = {}
        self._idle_bytes = 0
        self._questions: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._process = subprocess.Popen(  # noqa: S603  (a fixed command line)
            python_command("-m", module),
            env=_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # a library's panic may quote the request
            start_new_session=True,  # Ctrl-C is for the worker
        )
        self._thread = threading.Thread(target=self._carry, name="helix-process", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            with self._process:
                self._process.kill()
            raise

    @property
    def is_alive(self) -> bool:
        """Whether the process can take a request."""
        return self._thread.is_alive() and self._process.poll() is None

    def start(self, setup: bytes, seconds: float) -> None:
        """Send the setup and wait for the answer.

        Raises:
            ProcessEndedError: The process ended during the setup.
        """
        self.ready = self.ask(setup, seconds)
        idle = self._usage()
        self._idle_bytes = 0 if idle is None else idle.memory_bytes

    def ask(self, line: bytes, seconds: float) -> dict[str, Any]:
        """Send a line and wait for the answer.

        Args:
            line: JSON and a newline.
            seconds: Allowed processor time.

        Raises:
            RequestAtFaultError: The process exceeded its limits or crashed, and has ended.
            ProcessEndedError: The process was ended from outside.
        """
        began = time.monotonic()
        first: Usage | None = None
        self._questions.put(line)
        while True:
            try:
                answer = self._answers.get(timeout=_LOOK_EVERY)
            except queue.Empty:
                used, now = Usage(0.0, 0), self._usage()
                if now is not None:
                    first = first or now
                    used = Usage(now.seconds - first.seconds, now.memory_bytes - self._idle_bytes)
                excess = excess_of(used, time.monotonic() - began, seconds, self._limits)
                if excess:
                    self.kill()
                    raise RequestAtFaultError(excess) from None
                continue
            if not answer.endswith(b"\n"):
                raise self._epitaph(seconds)
            parsed: dict[str, Any] = json.loads(answer)
            return parsed

    def kill(self) -> None:
        """Kill the process and wait for its end."""
        with suppress(OSError):
            self._process.kill()
        self._questions.put(None)
        self._thread.join()

    def _carry(self) -> None:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            while (line := self._questions.get()) is not None:
                stdin.write(line)
                stdin.flush()
                answer = stdout.readline(_MAX_ANSWER_BYTES)
                if not answer.endswith(b"\n"):
                    break
                self._answers.put(answer)
        except OSError:
            pass  # the process is gone
        finally:
            with suppress(OSError):
                self._process.kill()
            # Closing a pipe fails once more where a request still stands in its buffer.
            with suppress(OSError), self._process:
                pass
            self._answers.put(b"")

    def _usage(self) -> Usage | None:
        """Time and memory used; None if the process is ending or no file descriptor is left to read them."""
        try:
            process = psutil.Process(self._process.pid)
            times = process.cpu_times()
            return Usage(times.user + times.system, process.memory_info().rss)
        except (psutil.Error, OSError):
            return None

    def _epitaph(self, seconds: float) -> ProcessEndedError:
        code = self._process.wait()
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        if name == "SIGPROF":
            return RequestAtFaultError(f"took more than {seconds:.3g} s of processor time")
        if name in ("SIGABRT", "SIGSEGV", "SIGBUS", "SIGILL"):  # Rust aborts where memory ends
            return RequestAtFaultError(f"crashed ({name})")
        return ProcessEndedError(f"ended with {name}")


@dataclass(frozen=True, slots=True)
class Usage:
    """Processor time in seconds and resident memory in bytes."""

    seconds: float
    memory_bytes: int


def excess_of(used: Usage, wall: float, seconds: float, limits: ProcessLimits) -> str:
    """The limit that a process at work has exceeded, in words; empty if none."""
    if used.seconds > seconds:
        return f"took more than {seconds:.3g} s of processor time"
    if used.memory_bytes > limits.memory_bytes:
        return f"took more than {rough_size(limits.memory_bytes)} of memory"
    if wall > limits.wall_factor * seconds:
        return f"did not answer for {wall:.0f} s"
    return ""


def _environment() -> dict[str, str]:
    """Our environment without Helix's settings, which hold passwords: untrusted code may run in the process."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HELIX_")}
    return {**kept, **import_path(), "TOKENIZERS_PARALLELISM": "false"}
