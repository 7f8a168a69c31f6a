"""SIGTERM and a closed terminal end a command as Ctrl-C does, so that it can report the state of its work."""

from __future__ import annotations

import signal
import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def stoppable() -> Iterator[None]:
    """Raise KeyboardInterrupt in the main thread on SIGTERM and SIGHUP while the block runs.

    docker stop, systemd and timeout(1) send SIGTERM, a closed terminal sends SIGHUP. A signal that was ignored when
    the command started (nohup) stays ignored.
    """
    with ExitStack() as stack:
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGTERM", "SIGHUP"):  # the latter is absent on Windows
                number = getattr(signal, name, None)
                if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                    stack.callback(signal.signal, number, signal.signal(number, _interrupt))
        yield


@contextmanager
def ended_by(end: Callable[[], None]) -> Iterator[None]:
    """Call ``end`` on SIGINT, SIGTERM and SIGHUP while the block runs, which then has to end by itself.

    An exception out of nowhere would leave what draws on a terminal in the middle of its work. A signal that is ignored
    stays so.

    Args:
        end: Called between two instructions of the main thread.
    """
    with ExitStack() as stack:
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGINT", "SIGTERM", "SIGHUP"):
                number = getattr(signal, name, None)
                if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):
                    stack.callback(signal.signal, number, signal.signal(number, lambda *_: end()))
        yield


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
