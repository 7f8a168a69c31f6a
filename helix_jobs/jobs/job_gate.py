"""JobGate: jobs run side by side, or one runs alone."""

from __future__ import annotations

import threading


class JobGate:
    """Where the threads of a worker pass before they claim a job. Thread-safe.

    A job at its *last attempt* has died with its workers every time before, and may be what killed them. It runs alone
    in its worker, nothing else even claimed beside it: if it kills this one too, no other job loses an attempt with it,
    and if it was only a bystander, it succeeds. So a poisonous job ends as ``worker_lost`` and takes nobody along.

    Trade-off: while such a job waits, the worker runs empty and then does these jobs one by one. That costs throughput
    only after two crashes in a row, and only for the jobs that were there both times; running them in small groups
    would be faster and could fail an innocent one for good.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._one_alone = False
        self._waiting_alone = 0
        self._closed = False

    def enter(self, *, alone: bool) -> bool:
        """Wait for leave to run; False if the gate is closed. Whoever was let in must ``leave``.

        Those who are to run alone go first, or others would keep them waiting for as long as there is work.
        """
        with self._changed:
            if alone:
                self._waiting_alone += 1
                self._changed.wait_for(lambda: self._closed or self._inside == 0)
                self._waiting_alone -= 1
            else:
                self._changed.wait_for(lambda: self._closed or not (self._one_alone or self._waiting_alone))
            if self._closed:
                return False
            self._inside += 1
            self._one_alone = alone
            return True

    def leave(self) -> None:
        """Make room."""
        with self._changed:
            self._inside -= 1
            self._one_alone = False
            self._changed.notify_all()

    def close(self) -> None:
        """Let nobody in any more."""
        self._set_closed(closed=True)

    def reopen(self) -> None:
        """Let jobs in again."""
        self._set_closed(closed=False)

    def _set_closed(self, *, closed: bool) -> None:
        with self._changed:
            self._closed = closed
            self._changed.notify_all()
