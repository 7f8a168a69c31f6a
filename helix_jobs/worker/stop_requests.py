"""StopRequests: how a worker is asked to stop, by signals or by other threads."""

from __future__ import annotations

import queue
import signal
from typing import TYPE_CHECKING

from helix_jobs.worker.shutdown import Action, Event

if TYPE_CHECKING:
    from contextlib import ExitStack

Order = Event | tuple[Action, ...] | None


class StopRequests:
    """Collects stop requests from signal handlers and other threads.

    A signal handler interrupts the main thread anywhere, even while that holds a lock, so all it may do is ``put`` on a
    SimpleQueue, which is reentrant.

    Attributes:
        orders: The worker's ending carries these out, in order: an event to react to, or an action that a reaction asks
            for; None ends the reading.
        armed: Whether the worker reads the orders. Before that (models are loading) a signal interrupts it.
    """

    def __init__(self) -> None:
        self.orders: queue.SimpleQueue[Order] = queue.SimpleQueue()
        self.armed = False

    def request_stop(self, *, interrupt: bool = False) -> None:
        """Ask the worker to stop and to finish the jobs that end within the grace time.

        Args:
            interrupt: Like Ctrl-C: a worker that is already stopping hands all jobs back at once.
        """
        self.orders.put(Event.INTERRUPT if interrupt else Event.STOP)


def install_signals(requests: StopRequests, stack: ExitStack) -> None:
    """Turn SIGINT, SIGTERM and a closed terminal into stop requests, or into KeyboardInterrupt until those are read."""

    def handle(number: int, _frame: object) -> None:
        if not requests.armed:
            raise KeyboardInterrupt
        requests.request_stop(interrupt=number == signal.SIGINT)

    numbers = [signal.SIGINT, signal.SIGTERM]
    hangup = getattr(signal, "SIGHUP", None)  # not on Windows
    if hangup is not None and signal.getsignal(hangup) is not signal.SIG_IGN:  # nohup: meant to outlive its terminal
        numbers.append(hangup)
    for number in numbers:
        stack.callback(signal.signal, number, signal.signal(number, handle))
