"""The three standard streams, which may be closed, broken, or limited to a narrow encoding."""

from __future__ import annotations

import errno
import io
import os
import sys
from contextlib import suppress
from typing import Any, BinaryIO, TextIO

from helix_jobs.errors import ConfigurationError, InputError
from helix_jobs.output_file import cannot_be_written


def prepare_streams() -> None:
    """Make the standard streams safe to use, before any file is opened.

    The next opened file would get a free descriptor from 0 to 2, and a library's output would go into the database. So
    closed descriptors are opened on the null device. ``sys.stdout`` stays None, which shows that it was closed.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            with suppress(OSError):
                os.open(os.devnull, os.O_RDWR)  # takes the lowest free descriptor, which is this one
    if sys.stderr is None:  # type: ignore[unreachable,unused-ignore]
        sys.stderr = _nowhere()  # type: ignore[unreachable,unused-ignore]
    for stream in (sys.stdout, sys.stderr):
        # A cp1252 or cp850 console lacks characters of some answers: print "?" for them instead of failing.
        if hasattr(stream, "reconfigure") and not (stream.encoding or "").lower().startswith("utf"):
            stream.reconfigure(errors="replace")
    sys.stdout = _watched(sys.stdout, is_needed=True)
    sys.stderr = _watched(sys.stderr, is_needed=False)


def require_output() -> None:
    """Make sure that there is a standard output, before a command does anything.

    Raises:
        ConfigurationError: Standard output is closed.
    """
    if sys.stdout is None:  # type: ignore[unreachable,unused-ignore]
        raise ConfigurationError("standard output is closed; send it to a file, to a pipe or to /dev/null")


def discard_output() -> None:
    """Discard printed text if standard output is closed or takes no more."""
    if sys.stdout is None:  # type: ignore[unreachable,unused-ignore]
        sys.stdout = _nowhere()  # type: ignore[unreachable,unused-ignore]
    elif isinstance(raw := getattr(getattr(sys.stdout, "buffer", None), "raw", None), _Watched):
        raw.is_needed = False


class _Watched(io.FileIO):
    """A standard stream whose disk may be full.

    The first failed write raises one error with one exit code, as for a file that the person named; none if the stream
    is not needed. Later writes are dropped, as Python writes its buffers once more when it ends.

    Args:
        descriptor: 1 or 2.
        is_needed: Whether the command is useless without the stream.
    """

    def __init__(self, descriptor: int, *, is_needed: bool) -> None:
        super().__init__(descriptor, "wb", closefd=False)
        self.is_needed = is_needed
        self._is_lost = False

    def write(self, data: Any, /) -> int:  # noqa: ANN401  (a buffer, which Python 3.11 has no name for)
        """Write as much of the data as the system takes.

        Raises:
            ConfigurationError: The stream takes no more.
            BrokenPipeError: The reader has closed the pipe.
        """
        if self._is_lost:
            return memoryview(data).nbytes
        try:
            return super().write(data)
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise
            self._is_lost = True
            if self.is_needed:
                raise cannot_be_written("standard output", error) from error
            return memoryview(data).nbytes


def _watched(stream: TextIO, *, is_needed: bool) -> TextIO:
    """Wrap the process's own stream in ``_Watched``; return any other stream unchanged."""
    own = (sys.__stdout__, sys.__stderr__)
    # A Windows console is not a file.
    if sys.platform == "win32" or stream is None or stream not in own or not isinstance(stream, io.TextIOWrapper):
        return stream
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Watched(stream.fileno(), is_needed=is_needed)),
        encoding=stream.encoding,
        errors=stream.errors,
        newline="\n",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _nowhere() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123  (open until the process ends)


def standard_input() -> BinaryIO:
    """Standard input as bytes.

    Raises:
        InputError: Standard input is closed.
    """
    if sys.stdin is None:  # type: ignore[unreachable,unused-ignore]
        raise InputError("standard input is closed; name a file of prompts")
    return sys.stdin.buffer
