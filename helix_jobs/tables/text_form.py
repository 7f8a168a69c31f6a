"""The encoding of a text file and the delimiter of its columns, detected from its beginning. Pure."""

from __future__ import annotations

import codecs
import csv
import io
import re
from dataclasses import dataclass
from itertools import islice
from typing import Final

from helix_jobs.errors import InputError
from helix_jobs.intake.text_encoding import narrow_encoding, wide_encoding

# Bytes that are looked at: enough for rows of long texts.
LOOK_BYTES: Final = 1024 * 1024
_ROWS: Final = 200
# Programs that write for Excel name the delimiter in a line before the header.
_NAMED: Final = re.compile(r"sep=([^\w\s\"]|\t)\r?\n")
NAMED_CELLS: Final = ["sep=", ""]
_DELIMITERS: Final = (",", "\t", ";", "|")
# A file of one column has no delimiter: its commas belong to the text. No text holds this character.
NO_DELIMITER: Final = "\x1f"
_NAMES: Final = {
    ",": "commas",
    "\t": "tabs",
    ";": "semicolons",
    "|": "bars",
    NO_DELIMITER: "nothing, as there is one column",
}
_SPELLINGS: Final = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "bar": "|", "pipe": "|", "space": " "}


@dataclass(frozen=True, slots=True)
class TextForm:
    """How a file's bytes become text.

    Attributes:
        codec: Python's name of the encoding.
        shown: Its name for a person.
        is_guess: Whether other encodings would do as well.
    """

    codec: str
    shown: str
    is_guess: bool = False


def text_form(first: bytes, *, is_whole: bool, given: str | None = None) -> TextForm:
    """The encoding of a text.

    Args:
        first: Its beginning.
        is_whole: Whether that is all of it.
        given: The encoding that the person names.

    Raises:
        InputError: The encoding cannot be told, or there is none of the given name.
    """
    if given is not None:
        try:
            name = codecs.lookup(given).name
            "".encode(name)
        except (LookupError, ValueError) as error:
            raise InputError(
                f"{given!r} is no encoding of text that Python knows; give one such as utf-8, cp1252, shift_jis or "
                "gb18030"
            ) from error
        return TextForm("utf-8-sig" if name == "utf-8" else name, name.upper())
    if (wide := wide_encoding(first)) is not None:
        return TextForm(wide.codec, wide.what)
    narrow = narrow_encoding(first, is_whole=is_whole)
    if narrow is None or narrow.codec == "utf-8":
        return TextForm("utf-8-sig", "UTF-8")
    if narrow.codec:
        return TextForm(narrow.codec, narrow.what.title(), is_guess=True)
    raise InputError(
        "the table is text in another encoding than UTF-8; name it with --encoding, such as cp1251, gb18030 or "
        "shift_jis"
    )


def delimiter_of(text: str, *, is_whole: bool) -> str:
    """The character between the columns: the one that cuts most rows into as many cells as the header has.

    A line ``sep=;`` before the header names it.

    Args:
        text: The file's beginning.
        is_whole: Whether that is all of it; otherwise its last line is not looked at.
    """
    if (named := _NAMED.match(text)) is not None:
        return named[1]
    if not is_whole and "\n" in text:
        text = text[: text.rindex("\n") + 1]
    best, best_score = NO_DELIMITER, (0.0, 1)
    for delimiter in _DELIMITERS:
        widths = _widths(text, delimiter)
        if not widths or widths[0] < 2:  # noqa: PLR2004  (columns)
            continue
        score = (sum(width == widths[0] for width in widths) / len(widths), widths[0])
        if score > best_score and score[0] > 0.5:  # noqa: PLR2004  (most rows)
            best, best_score = delimiter, score
    return best


def _widths(text: str, delimiter: str) -> list[int]:
    """Numbers of cells of the first rows."""
    widths: list[int] = []
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        widths.extend(len(cells) for cells in islice(reader, _ROWS) if cells)
    except csv.Error:
        pass  # a quote that is not closed within the beginning
    return widths


def read_delimiter(text: str) -> str:
    """The delimiter that a person names.

    Raises:
        InputError: It is neither one character nor a known word.
    """
    delimiter = _SPELLINGS.get(text.lower(), text)
    if len(delimiter) != 1 or delimiter in '"\r\n':
        raise InputError(f"the delimiter {text!r} is not one character; give one such as ; or the word tab")
    return delimiter


def delimiter_name(delimiter: str) -> str:
    """A delimiter in words."""
    return _NAMES.get(delimiter, repr(delimiter))
