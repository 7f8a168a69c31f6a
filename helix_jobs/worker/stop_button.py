"""How a worker is asked to stop: by signals, or by whoever holds its StopButton."""

from __future__ import annotations

import queue
import signal
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from contextlib import ExitStack


class StopRequest(Enum):
    """How a worker is asked to stop."""

    GRACEFUL = "graceful"  # finish what finishes within the grace time
    INTERRUPT = "interrupt"  # Ctrl-C: graceful the first time, at once the second
    BROKEN = "broken"  # the engine cannot go on


class StopButton:
    """Collects stop requests from signal handlers and other threads.

    A signal handler interrupts the main thread wherever it is, lock in hand or not, so all it may do is ``put`` on a
    SimpleQueue, which is reentrant.

    Attributes:
        requests: What was asked for, in order; None ends the reading.
        armed: The worker reads the requests. Before that (models are loading) a signal interrupts it.
    """

    def __init__(self) -> None:
        self.requests: queue.SimpleQueue[StopRequest | None] = queue.SimpleQueue()
        self.armed = False

    def press(self, request: StopRequest = StopRequest.GRACEFUL) -> None:
        """Ask the worker to stop."""
        self.requests.put(request)


def install_signals(button: StopButton, stack: ExitStack) -> None:
    """Turn SIGINT, SIGTERM and a closed terminal into presses; before the button is armed, into KeyboardInterrupt."""

    def handle(number: int, _frame: object) -> None:
        if not button.armed:
            raise KeyboardInterrupt
        button.press(StopRequest.INTERRUPT if number == signal.SIGINT else StopRequest.GRACEFUL)

    numbers = [signal.SIGINT, signal.SIGTERM]
    hangup = getattr(signal, "SIGHUP", None)  # not on Windows
    if hangup is not None and signal.getsignal(hangup) is not signal.SIG_IGN:  # nohup: meant to outlive its terminal
        numbers.append(hangup)
    for number in numbers:
        stack.callback(signal.signal, number, signal.signal(number, handle))
