"""Views of a comparison on a terminal; without colours, marks stand for what was removed and added."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from helix_jobs.plain_text import paragraphs, printable, shorten
from helix_jobs.reports.comparison_rows import sums_in_words
from helix_jobs.reports.text_diff import PieceKind

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from helix_jobs.reports.comparison import Tally
    from helix_jobs.reports.comparison_rows import ShownRow

_STYLES: Final = {
    "changed": "yellow",
    "newly_failed": "red",
    "failed_twice": "red",
    "newly_fixed": "green",
}
_PROMPT: Final = 100
_VALUE: Final = 120
# As in `git diff --word-diff`.
_MARKS: Final = {PieceKind.REMOVED: ("[-", "-]"), PieceKind.ADDED: ("{+", "+}")}
_COLOURS: Final = {PieceKind.REMOVED: "red strike", PieceKind.ADDED: "green"}


def sums_view(before: str, after: str, tally: Tally) -> Table:
    """Both batches' sums side by side."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("BOTH ANSWERED")
    table.add_column(before, justify="right")
    table.add_column(after, justify="right")
    for row in sums_in_words(tally.before, tally.after):
        table.add_row(*row)
    return table


def print_row(console: Console, row: ShownRow) -> None:
    """One pair: its name and kind, then how the answers differ."""
    from rich.text import Text

    head = Text(shorten(printable(row.name), 80), style="bold")
    head.append(f"  {row.words}", style=_STYLES.get(row.kind, ""))
    if row.was_asked_otherwise:
        head.append("  another prompt", style="dim")
    if row.asked:
        head.append(f"  {shorten(printable(row.asked[:1000]), _PROMPT)}", style="dim")
    console.print(head, soft_wrap=True)
    for note in row.notes:
        console.print(Text(f"   {shorten(printable(note[:2000]), 300)}"), soft_wrap=True)
    has_colours = console.color_system is not None
    for path, old, new in row.fields:
        line = Text(f"   {printable(path) or 'whole'}: ")
        _append(line, PieceKind.REMOVED, shorten(printable(old[:1000]), _VALUE), has_colours=has_colours)
        line.append(" ")
        _append(line, PieceKind.ADDED, shorten(printable(new[:1000]), _VALUE), has_colours=has_colours)
        console.print(line, soft_wrap=True)
    for pieces in row.texts:
        text = Text("   ")
        for piece in pieces:
            shown = paragraphs(piece.text).replace("\n", "\n   ")
            _append(text, piece.kind, shown, has_colours=has_colours)
        console.print(text, soft_wrap=True)


def _append(text: Text, kind: PieceKind, piece: str, *, has_colours: bool) -> None:
    if kind is PieceKind.SAME:
        text.append(piece)
    elif has_colours:
        text.append(piece, style=_COLOURS[kind])
    else:
        left, right = _MARKS[kind]
        text.append(f"{left}{piece}{right}")
