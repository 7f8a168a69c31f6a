"""Rows of a folder or a pattern of text files: one file a row, with the columns path, name and text."""

from __future__ import annotations

import glob
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from helix_jobs.errors import InputError
from helix_jobs.intake.text_encoding import wide_encoding
from helix_jobs.tables.row import BadRow, Row, row_json
from helix_jobs.tables.text_form import text_form

if TYPE_CHECKING:
    from collections.abc import Iterator

# As much as a line of JSON may hold.
MAX_FILE_BYTES: Final = 4 * 1024 * 1024
# What is read as a text of its own although it is a single file.
TEXT_SUFFIXES: Final = (".txt", ".md", ".rst", ".html", ".htm")


class TextFileRows:
    """The files below a folder, or those that a pattern matches, in the order of their paths.

    Hidden files and folders are left out, and links to folders are not followed.

    Args:
        place: The folder, the file, or the pattern.
        encoding: The encoding of all files; None detects each file's own.

    Attributes:
        columns: ``path`` (within the folder; as it is found by a pattern), ``name`` and ``text``.
    """

    columns = ("path", "name", "text")

    def __init__(self, place: str, encoding: str | None = None) -> None:
        self._place = place
        self._encoding = encoding

    def rows(self) -> Iterator[Row | BadRow]:
        """The files, numbered from 1."""
        for number, (shown, path) in enumerate(self._files(), start=1):
            yield self._row(number, shown, path)

    def _files(self) -> Iterator[tuple[str, Path]]:
        place = Path(self._place)
        if place.is_dir():
            yield from _below(place, place)
        elif place.is_file():
            yield place.name, place
        else:
            for found in sorted(glob.iglob(self._place, recursive=True)):  # noqa: PTH207  (the pattern may be absolute)
                if Path(found).is_file():
                    yield found, Path(found)

    def _row(self, number: int, shown: str, path: Path) -> Row | BadRow:
        # A file name need not be UTF-8, but a column must.
        shown = os.fsencode(shown).decode(errors="replace")
        named = row_json({"path": shown})
        try:
            with path.open("rb") as stream:
                data = stream.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            return BadRow(number, "path", f"{shown} cannot be read ({error.strerror})", "correct it", named)
        if len(data) > MAX_FILE_BYTES:
            return BadRow(number, "text", f"{shown} is longer than 4 MiB", "split it", named)
        if b"\0" in data and wide_encoding(data) is None:
            return BadRow(number, "text", f"{shown} is no text", "take it out of the folder or pattern", named)
        try:
            text = data.decode(text_form(data, is_whole=True, given=self._encoding).codec)
        except (InputError, UnicodeDecodeError):
            encoding = self._encoding or "UTF-8"
            return BadRow(number, "text", f"{shown} is not {encoding}", "name its encoding with --encoding", named)
        return Row(number, {"path": shown, "name": Path(shown).name, "text": text})


def _below(folder: Path, root: Path) -> Iterator[tuple[str, Path]]:
    for entry in sorted(folder.iterdir(), key=lambda path: path.name):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            if not entry.is_symlink():
                yield from _below(entry, root)
        elif entry.is_file():
            yield str(entry.relative_to(root)), entry
