"""TopView: the screen of ``helix top``."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar

from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import DataTable, Footer, Static

from helix_jobs.cli.top_rows import BATCH_TITLES, WORKER_TITLES
from helix_jobs.errors import HelixError
from helix_jobs.plain_text import printable
from helix_jobs.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from helix_jobs.cli.top_rows import TopRows


class TopView(App[None]):
    """Reads on a thread, so that a slow database does not freeze the screen, and shows what it read last.

    Args:
        read: Reads one look.
        interval: Seconds between the end of a look and the next.

    Attributes:
        is_told: Whether ``end`` was called.
    """

    CSS = """
    #summary { padding: 0 1; text-style: bold; }
    #trouble { padding: 0 1; color: $warning; }
    DataTable { height: auto; max-height: 50%; margin-top: 1; }
    #batches { height: 1fr; max-height: 100%; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [Binding("q", "quit", "Quit")]
    ENABLE_COMMAND_PALETTE = False

    def __init__(self, read: Callable[[], TopRows], interval: float) -> None:
        super().__init__()
        self._read = read
        self._interval = interval
        self._own_loop: asyncio.AbstractEventLoop | None = None
        self.is_told = False

    def end(self) -> None:
        """Leave the screen as by its key; may be called by a signal's handler."""
        self.is_told = True
        if self._own_loop is not None:
            with suppress(RuntimeError):  # it is closed already
                self._own_loop.call_soon_threadsafe(self.exit)

    def compose(self) -> ComposeResult:
        """The parts of the screen."""
        yield Static("Reading ...", id="summary", markup=False)
        yield Static("", id="trouble", markup=False)
        yield DataTable(id="workers", cursor_type="none")
        yield DataTable(id="batches", cursor_type="row")
        yield Footer()

    def on_mount(self) -> None:
        """Begin to look."""
        self._own_loop = asyncio.get_running_loop()
        if self.is_told:
            self.exit()
        self.query_one("#workers", DataTable).add_columns(*WORKER_TITLES)
        self.query_one("#batches", DataTable).add_columns(*BATCH_TITLES)
        self.query_one("#batches", DataTable).focus()
        self._look()

    def _look(self) -> None:
        self.run_worker(self._read_and_show, thread=True, exclusive=True)

    def _read_and_show(self) -> None:
        try:
            rows = self._read()
        except HelixError as error:
            self.call_from_thread(self._say, f"{printable(redact(str(error)))}; trying again")
        else:
            self.call_from_thread(self._show, rows)

    def _show(self, rows: TopRows) -> None:
        self.query_one("#summary", Static).update(rows.summary)
        _fill(self.query_one("#workers", DataTable), rows.workers)
        _fill(self.query_one("#batches", DataTable), rows.batches)
        self._say(rows.notice)

    def _say(self, trouble: str) -> None:
        self.query_one("#trouble", Static).update(trouble)
        self.set_timer(self._interval, self._look)


def _fill(table: DataTable[Any], rows: Sequence[tuple[str, ...]]) -> None:
    """Put rows into a table, and leave the cursor and the scroll where they are."""
    from rich.text import Text

    place, offset = table.cursor_row, table.scroll_offset
    table.clear()
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    table.move_cursor(row=min(place, max(0, len(rows) - 1)), scroll=False)
    table.scroll_to(offset.x, offset.y, animate=False)
