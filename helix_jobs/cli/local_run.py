"""run_locally: ``submit --local``. Starts the broker and a worker if missing, and shows the answers of one batch."""

from __future__ import annotations

from contextlib import ExitStack
from itertools import islice
from typing import TYPE_CHECKING, Final

from helix_jobs.cli.console import is_interactive, make_console, working
from helix_jobs.cli.follow import follow_for_person
from helix_jobs.cli.group import command_line
from helix_jobs.cli.views import print_answers
from helix_jobs.errors import HelixError, UnreachableError
from helix_jobs.plain_text import printable
from helix_jobs.storage.states import JobState
from helix_jobs.wording import counted

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status

    from helix_jobs.client.client import HelixClient
    from helix_jobs.settings import Settings
    from helix_jobs.storage.records import BatchStatus

_SHOWN_ANSWERS: Final = 10


def run_locally(
    settings: Settings, client: HelixClient, batch_id: str, console: Console, *, keep: bool, as_json: bool
) -> BatchStatus:
    """Start a worker if none runs, wait for the batch, show the answers, and stop the worker.

    Without ``keep`` the batch is cancelled if no worker can be started.
    """
    step = _Step(console)
    with ExitStack() as stack:
        # The stack unwinds in reverse: it stops the worker, which shows a step, and then clears the line.
        stack.callback(step.clear)
        try:
            from helix_jobs.client.local_worker import LocalWorker
            from helix_jobs.worker.child import WorkerThread

            _tell_backlog(client, batch_id, console)
            worker = stack.enter_context(LocalWorker(settings, WorkerThread, on_progress=step.show))
        except (HelixError, OSError, KeyboardInterrupt):
            step.clear()
            # A person mends the cause and repeats the command: the jobs must then exist only once.
            if keep:
                became = f"batch {batch_id} is stored, and the same command again goes on with it"
            else:
                client.cancel(batch_id)
                became = f"batch {batch_id} is cancelled"
            console.print(f"\nNo worker was started; {became}.", soft_wrap=True)
            raise
        step.clear()
        final = follow_for_person(client, batch_id, console, worker=worker)
        if not as_json:
            _show_answers(client, final)
    return final


def _tell_backlog(client: HelixClient, batch_id: str, console: Console) -> None:
    """Say that other batches are queued too: while their jobs run first, this batch seems to stand still."""
    try:
        status = client.status(batch_id)
        backlog = client.backlog()
    except UnreachableError:
        return  # the command that follows the batch outlasts the outage, or reports it
    others = backlog - status.counts[JobState.QUEUED]
    if others > 0 and not status.done:
        wait = "waits" if others == 1 else "wait"
        console.print(
            f"{counted(others, 'job')} of other batches {wait} too; older and more urgent ones go first.",
            soft_wrap=True,
        )


def _show_answers(client: HelixClient, status: BatchStatus) -> None:
    console = make_console()
    rows = client.results(status.id, include_failed=True)
    shown = print_answers(console, islice(rows, _SHOWN_ANSWERS))
    if next(rows, None) is not None:
        more = command_line("results", status.id)
        console.print(f"{shown.of(status.finished)} shown. More: {more}\n", soft_wrap=True)


class _Step:
    """Shows the current step: one line that changes on a terminal, a new line for each step in a pipe."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Status | None = None

    def show(self, line: str) -> None:
        """Show the next step."""
        text = f"{printable(line)} ..."
        if not is_interactive(self._console):
            self._console.print(text, soft_wrap=True)
        elif self._live is None:
            self._live = working(self._console, text)
            self._live.start()
        else:
            self._live.update(text)

    def clear(self) -> None:
        """Remove the line."""
        if self._live is not None:
            self._live.stop()
            self._live = None
