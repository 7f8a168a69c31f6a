"""The three standard streams, as whoever started the command left them: closed, away, or of a narrow encoding."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import BinaryIO, TextIO

from helix_jobs.errors import ConfigurationError, InputError


def prepare_streams() -> None:
    """Make them safe to use, before anything else is opened.

    A number from 0 to 2 that is free would be given to the next file, and what a library prints would go into the
    database. So a closed stream leads nowhere; whether it was closed, ``sys.stdout`` still says (None).
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            with suppress(OSError):
                os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    if sys.stderr is None:  # type: ignore[unreachable,unused-ignore]
        sys.stderr = _nowhere()  # type: ignore[unreachable,unused-ignore]
    for stream in (sys.stdout, sys.stderr):
        # A cp1252 or cp850 console cannot show every answer: show "?" for what it lacks rather than end in the middle.
        if hasattr(stream, "reconfigure") and not (stream.encoding or "").lower().startswith("utf"):
            stream.reconfigure(errors="replace")


def require_output() -> None:
    """Make sure that there is somewhere to write to; asked before a command does anything.

    Raises:
        ConfigurationError: Standard output is closed.
    """
    if sys.stdout is None:  # type: ignore[unreachable,unused-ignore]
        raise ConfigurationError("standard output is closed; send it to a file, to a pipe or to /dev/null")


def discard_output() -> None:
    """Let what is printed go nowhere if standard output is closed."""
    if sys.stdout is None:  # type: ignore[unreachable,unused-ignore]
        sys.stdout = _nowhere()  # type: ignore[unreachable,unused-ignore]


def _nowhere() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123  (open until the process ends)


def standard_input() -> BinaryIO:
    """Standard input as bytes.

    Raises:
        InputError: It is closed.
    """
    if sys.stdin is None:  # type: ignore[unreachable,unused-ignore]
        raise InputError("standard input is closed; name a file of prompts")
    return sys.stdin.buffer
