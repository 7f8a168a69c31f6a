"""StopRequests: how a worker is asked to stop, by signals, by other threads, or because it must rest."""

from __future__ import annotations

import queue
import signal
from contextlib import suppress
from typing import TYPE_CHECKING

from helix_jobs.worker.shutdown import Action, Event

if TYPE_CHECKING:
    from contextlib import ExitStack

    from helix_jobs.worker.rest import Rest

Order = Event | tuple[Action, ...] | None


class StopRequests:
    """Collects stop requests from signal handlers and other threads.

    A signal handler interrupts the main thread anywhere, even while that holds a lock, so all it may do is ``put`` on a
    SimpleQueue, which is reentrant.

    Attributes:
        orders: The worker's ending carries these out, in order: an event to react to, or an action that a reaction asks
            for; None ends the reading.
        armed: Whether a stop is noted and seen to. Otherwise (models are loading) a signal interrupts the worker.
        is_final: Whether the process is asked to end, not only to rest.
        rest: The rest for which the worker under way stops; None while it has no reason to.
    """

    def __init__(self) -> None:
        self.orders: queue.SimpleQueue[Order] = queue.SimpleQueue()
        self.armed = False
        self.is_final = False
        self.rest: Rest | None = None

    def request_stop(self, *, interrupt: bool = False) -> None:
        """Ask the worker to stop for good and to finish the jobs that end within the grace time.

        Args:
            interrupt: Like Ctrl-C: a worker that is already stopping hands all jobs back at once.
        """
        self.is_final = True  # before the order, see ``begin_shift``
        self.orders.put(Event.INTERRUPT if interrupt else Event.STOP)

    def request_rest(self, rest: Rest) -> None:
        """Ask the worker to stop for a rest; it hands its jobs back at once if the rest says so. May be repeated."""
        before, self.rest = self.rest, rest
        if before is None or rest.at_once > before.at_once:
            self.orders.put(Event.RECALL if rest.at_once else Event.STOP)

    def begin_shift(self) -> None:
        """Forget what the last worker left, but not that the process is asked to end."""
        self.rest = None
        self.orders = queue.SimpleQueue()
        if self.is_final:
            self.orders.put(Event.STOP)

    def pause(self, seconds: float) -> None:
        """Wait so long, or until a stop is requested. Only while no worker reads the orders."""
        with suppress(queue.Empty):
            self.orders.get(timeout=seconds)


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
