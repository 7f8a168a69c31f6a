"""Follow a batch until it ends: a live bar on a terminal, plain lines in a pipe, JSON lines for programs."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Final

import click

from helix_jobs.cli.console import is_interactive
from helix_jobs.cli.group import INTERRUPTED, command_line, echo_json
from helix_jobs.cli.outlook_teller import OutlookTeller
from helix_jobs.cli.progress import progress_line, progress_view, submitting_notice, summary_lines
from helix_jobs.client.pace import PaceMeter
from helix_jobs.errors import DatabaseUnreachableError
from helix_jobs.plain_text import printable
from helix_jobs.storage.states import BatchState, JobState

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.console import Console

    from helix_jobs.client.client import HelixClient
    from helix_jobs.client.local_worker import LocalWorker
    from helix_jobs.settings import Settings
    from helix_jobs.storage.records import BatchStatus, Worker

_PLAIN_INTERVAL: Final = 10.0
# After this many seconds without a line, a log looks like a hanging program.
_PLAIN_SILENCE: Final = 30.0
_REFRESH_PER_SECOND: Final = 4


def worker_notice(status: BatchStatus, workers: Sequence[Worker], lease: float, settings: Settings) -> str | None:
    """A notice about what the batch waits for: the end of its submission, somebody to resume it, or a worker."""
    from helix_jobs.cli.resting import idle_notice
    from helix_jobs.storage.liveness import seems_alive

    if status.total is None:
        return submitting_notice(command_line("cancel", status.id))
    if status.state is BatchState.PAUSED:
        why = f": {status.paused_why}" if status.paused_why else ""
        return f"Paused{why}. Let it go on with: {command_line('resume', status.id)}"
    if status.done or any(seems_alive(worker, lease) for worker in workers):
        return None
    if not workers:
        return idle_notice(settings)
    return f"The worker does not respond. Start one with: {command_line('worker')}"


def follow_for_person(
    client: HelixClient, batch_id: str, console: Console, *, worker: LocalWorker | None = None
) -> BatchStatus:
    """Show progress until the batch ends; Ctrl-C leaves the batch in the queue and exits.

    Args:
        client: The client to poll.
        batch_id: The batch to follow.
        console: The console to print on.
        worker: A worker that this command started, checked at each poll.

    Raises:
        NotFoundError: No such batch.
        DatabaseUnreachableError: The database went away.
        HelixError: ``worker`` has ended, and restarting it does not help.
    """
    follower = _Follower(client, console, worker)
    try:
        return follower.follow(batch_id)
    except KeyboardInterrupt:
        if worker is not None and worker.started:
            goes_on = f"Interrupted. Batch {batch_id} keeps its answers; to go on: {command_line('worker')}"
        else:
            goes_on = f"Stopped watching; batch {batch_id} goes on."
        console.print(
            f"\n{goes_on}\n"
            f"Watch it with:  {command_line('watch', batch_id)}\n"
            f"Cancel it with: {command_line('cancel', batch_id)}",
            soft_wrap=True,
        )
        click.get_current_context().exit(INTERRUPTED)


def follow_as_json(client: HelixClient, batch_id: str) -> BatchStatus:
    """Print a status object a line at each change until the batch ends.

    Raises:
        NotFoundError: No such batch.
        DatabaseUnreachableError: The database went away.
    """
    from helix_jobs.cli.views import batch_json

    printed: dict[str, object] = {}
    outlook = OutlookTeller(client)
    # What changes with the clock alone is not a change.
    moving = {"tokens_per_second": None, "forecast": None}

    def show(status: BatchStatus) -> None:
        nonlocal printed
        value = batch_json(status)
        if {**value, **moving} != {**printed, **moving}:
            value["forecast"] = outlook.json(status)
            echo_json(value, one_line=True)
            printed = value

    try:
        final = client.wait(batch_id, on_update=show)
    except KeyboardInterrupt:
        click.get_current_context().exit(INTERRUPTED)
    show(final)
    return final


def print_summary(console: Console, status: BatchStatus) -> None:
    """Print the batch's outcome, and the command to run next."""
    for line in summary_lines(status):
        console.print(line, soft_wrap=True)
    if status.counts[JobState.FAILED]:
        console.print(f"See why with: {command_line('results', status.id, '--failed')}", soft_wrap=True)
        console.print(f"Try the failed ones again with: {command_line('retry', status.id)}", soft_wrap=True)
    if status.cut_off:
        more = command_line("retry", status.id, "--cut", "--max-tokens", "N")
        console.print(f"Take those that were cut off again with more room: {more}", soft_wrap=True)


class _Follower:
    """Shows one batch's progress, live on a terminal or as lines in a pipe."""

    def __init__(
        self,
        client: HelixClient,
        console: Console,
        worker: LocalWorker | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._console = console
        self._worker = worker
        self._clock = clock
        self._meter = PaceMeter()
        self._outlook = OutlookTeller(client, clock)
        self._told_slipping = False
        self._worker_doing: str | None = None
        self._printed_at: float | None = None
        self._printed: str | None = None

    def follow(self, batch_id: str) -> BatchStatus:
        """Wait until the batch ends and return its last status."""
        if not is_interactive(self._console):
            return self._wait(batch_id, self._print)
        from rich.live import Live

        with Live(console=self._console, refresh_per_second=_REFRESH_PER_SECOND, transient=True) as live:

            def show(status: BatchStatus) -> None:
                pace = self._meter.update(self._clock(), status)
                live.update(progress_view(status, pace, self._notice(status), self._outlook.words(status)))

            return self._wait(batch_id, show)

    def _wait(self, batch_id: str, show: Callable[[BatchStatus], None]) -> BatchStatus:
        def update(status: BatchStatus) -> None:
            if self._worker is not None and not status.done:
                doing = self._worker.check()
                if doing is not None and doing != self._worker_doing and not is_interactive(self._console):
                    self._console.print(f"{printable(doing)} ...", soft_wrap=True)
                self._worker_doing = doing
            show(status)

        return self._client.wait(batch_id, on_update=update)

    def _notice(self, status: BatchStatus) -> str | None:
        """The notice to show. Running jobs do not prove a worker: a dead worker's jobs stay running until reclaimed."""
        if status.done:
            return None
        if self._worker is not None:
            return self._worker_doing
        try:
            notice = worker_notice(
                status, list(self._client.live_workers()), self._client.time_limits.lease, self._client.settings
            )
        except DatabaseUnreachableError:
            return None  # the next poll outlasts the outage or ends the command
        return notice or self._slipping(status)

    def _slipping(self, status: BatchStatus) -> str | None:
        """That the deadline will probably be missed: always on a terminal, once in a pipe."""
        sentence = self._outlook.slipping(status)
        if sentence is None or (self._told_slipping and not is_interactive(self._console)):
            return None
        self._told_slipping = True
        return sentence

    def _print(self, status: BatchStatus) -> None:
        """Print a line at the first update, then every ten seconds if the line has changed, else every thirty."""
        now = self._clock()
        pace = self._meter.update(now, status)
        quiet = math.inf if self._printed_at is None else now - self._printed_at
        if quiet < _PLAIN_INTERVAL or status.done:
            return
        notice = self._notice(status)
        line = f"{progress_line(status, pace, self._outlook.words(status))}{f'. {notice}' if notice else ''}"
        if line != self._printed or quiet >= _PLAIN_SILENCE:
            self._console.print(line, soft_wrap=True)
            self._printed_at, self._printed = now, line
