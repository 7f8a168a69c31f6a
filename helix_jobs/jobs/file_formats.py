"""What a file is, by its first bytes: lines of JSON, packed lines, or something else, which is refused by its name.

Without this, a file that holds no lines of JSON at all is reported line by line, and each report misleads.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import shlex
import zlib
from typing import TYPE_CHECKING, BinaryIO, Final, cast

from helix_jobs.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from helix_jobs.jobs.requests import LineSource

# Enough for the first two lines of whatever a person looks at in an editor; longer lines are judged by their beginning.
_LOOK: Final = 64 * 1024
_PIECE: Final = 64 * 1024
_GZIP: Final = b"\x1f\x8b\x08"
_BOM: Final = b"\xef\xbb\xbf"
_PANDAS: Final = re.compile(r"PANDAS\(([^)]*)\)")

_MAX_BLANK_LINES: Final = 100
# First bytes -> what the file is, and the command that prints lines of JSON of it, FILE and PANDAS filled in.
_SIGNATURES: Final[Mapping[bytes, tuple[str, str]]] = {
    b"\x28\xb5\x2f\xfd": ("compressed with zstd", "zstd -dc FILE"),
    b"BZh": ("compressed with bzip2", "bzip2 -dc FILE"),
    b"\xfd7zXZ\0": ("compressed with xz", "xz -dc FILE"),
    b"\x04\x22\x4d\x18": ("compressed with lz4", "lz4 -dc FILE"),
    b"PAR1": ("Parquet", "PANDAS(read_parquet)"),
    b"ARROW1": ("Arrow (Feather)", "PANDAS(read_feather)"),
    b"PK\x03\x04": (
        "a ZIP archive or an Excel workbook",
        "unzip -p FILE (a workbook: PANDAS(read_excel))",
    ),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", "7z x -so FILE"),
    b"SQLite format 3\0": (
        "an SQLite database",
        "sqlite3 FILE \"SELECT json_object('prompt', COLUMN) FROM TABLE\"",
    ),
    b"%PDF-": ("a PDF document", "pdftotext FILE - | jq -Rsc '{prompt: .}'"),
}
_UTF16_MARKS: Final = (b"\xff\xfe", b"\xfe\xff")
# Control characters that no text holds; it may hold tabs, form feeds and the escapes of colours.
_NO_TEXT: Final = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
_HEADER_CELL: Final = re.compile(r'"?[A-Za-z_][\w .-]{0,63}"?')
_YAML_LINE: Final = re.compile(r"---\s*$|%YAML|(?:- )?[A-Za-z_][\w-]*:(?:\s|$)|- \S")
_COLUMNS: Final = frozenset({"prompt", "text", "question", "input", "instruction"})
_COLUMN_OF_PROMPTS: Final = "the column of prompts has to be called prompt"
_LIST_MEMBER: Final = re.compile(r'"([A-Za-z_]\w*)"\s*:\s*\[')
# Lists that belong to one request, so an object that holds one is a request and not a wrapper of many.
_OWN_LISTS: Final = frozenset({"messages", "stop", "contents", "conversations", "input", "system", "parts"})


def open_lines(stream: LineSource, name: str | None = None) -> LineSource:
    """Return the stream's lines of JSON: unpacked if it is gzip, with ends if these are carriage returns.

    Args:
        stream: The bytes, from their beginning.
        name: The path, for the command in a message; None for standard input and other streams.

    Raises:
        InputError: The file holds something else; names it and the command that converts it.
    """
    first = stream.readline(_LOOK)
    if first.startswith(_GZIP):
        if isinstance(stream, _Gzip):
            raise _not_lines("compressed twice", "gunzip -c FILE | gunzip -c", name)
        return open_lines(_Gzip(_Again([first], stream)), name)
    taken = [first]
    while taken[-1] and len(taken) < _MAX_BLANK_LINES and not taken[-1].removeprefix(_BOM).strip():
        taken.append(stream.readline(_LOOK))
    line = taken[-1]
    _refuse_other_bytes(line, name)
    again = _Again(taken, stream)
    if _has_carriage_returns(line):
        return _CarriageReturns(again)
    text = line.removeprefix(_BOM).decode(errors="replace").strip()
    if text and not _is_whole_json(text):
        second = stream.readline(_LOOK) if line.endswith(b"\n") else b""
        again = _Again([*taken, second], stream)
        if not text.startswith(("{", "[")) and _NO_TEXT.search(line + second):
            raise InputError(f"{_shown(name) or 'the input'} is no text; give a file with one JSON object a line")
        _refuse_other_text(text, second.decode(errors="replace").strip(), name)
    return again


def _refuse_other_bytes(first: bytes, name: str | None) -> None:
    for signature, (what, command) in _SIGNATURES.items():
        if first.startswith(signature):
            raise _not_lines(what, command, name)
    # UTF-16 of ASCII characters is every other byte NUL, with or without a mark.
    nul = b"\0\0"
    if first.startswith(_UTF16_MARKS) or (first[0:4:2] == nul) != (first[1:4:2] == nul):
        kind = "UTF-16" if first.startswith(_UTF16_MARKS) else "UTF-16BE" if first[:1] == b"\0" else "UTF-16LE"
        raise _not_lines("UTF-16 text", f"iconv -f {kind} -t UTF-8 FILE", name)


def _refuse_other_text(first: str, second: str, name: str | None) -> None:
    """Judge a first line that is no JSON by itself, with the line after it."""
    if first.startswith("[") and not first.startswith("[]"):
        if _ends_too_early(first) or _ends_too_early(first.rstrip(",")):
            raise _not_lines("one JSON document over several lines", "jq -c '.[]' FILE", name)
        return
    if first.startswith("{"):
        if _ends_too_early(first) and second and not second.startswith("{"):
            wrapped = _LIST_MEMBER.match(first.removeprefix("{").strip() or second)
            inside = f".{wrapped[1]}[]" if wrapped and wrapped[1] not in _OWN_LISTS else "."
            raise _not_lines("JSON spread over several lines", f"jq -c '{inside}' FILE", name)
        return
    for separator, what in ((",", "CSV"), ("\t", "tab-separated values"), (";", "CSV with semicolons")):
        cells = first.split(separator)
        if len(cells) > 1 and separator in second and all(_HEADER_CELL.fullmatch(cell.strip()) for cell in cells):
            option = "" if separator == "," else f", sep={json.dumps(separator)}"
            raise _not_lines(what, f"PANDAS(read_csv{option})", name, _COLUMN_OF_PROMPTS)
    if not second or second.startswith(("{", "[")):
        return
    if first.strip('"') in _COLUMNS:
        raise _not_lines("CSV", "PANDAS(read_csv)", name, _COLUMN_OF_PROMPTS)
    if _YAML_LINE.match(first):
        raise _not_lines("YAML", "yq -o=json -I=0 '.[]' FILE", name)
    raise _not_lines("plain text", "jq -Rc '{prompt: .}' FILE", name, "each line becomes a prompt")


def _not_lines(what: str, command: str, name: str | None, note: str | None = None) -> InputError:
    shown = _shown(name)
    command = _PANDAS.sub(lambda found: _pandas(found[1]), command)
    filled = command.replace("FILE", "FILE" if shown is None else shlex.quote(shown))
    # Into a pipe: a file that the command wrote might be the one it reads.
    message = f"{shown or 'the input'} is {what}, not one JSON object a line; submit it with: {filled} | helix submit -"
    return InputError(message if note is None else f"{message} ({note})")


def _shown(name: str | None) -> str | None:
    return name if name is not None and name.isprintable() else None


def _pandas(reader: str) -> str:
    function, _, options = reader.partition(",")
    read = f"pandas.{function}(sys.argv[1]{',' if options else ''}{options})"
    code = f'import pandas, sys; print({read}.to_json(orient="records", lines=True))'
    return f"python -c {shlex.quote(code)} FILE"


def _is_whole_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _ends_too_early(text: str) -> bool:
    """Whether a text is the beginning of JSON and no more: right up to its last character."""
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return error.pos >= len(text.rstrip()) or not text[error.pos :].strip(" ,")
    except (ValueError, RecursionError):
        return False
    return False


def _has_carriage_returns(first: bytes) -> bool:
    """Whether the lines end with CR alone: what stands before the first CR is an object of its own."""
    line, end, rest = first.partition(b"\r")
    return bool(end) and rest not in (b"", b"\n") and _is_whole_json(line.removeprefix(_BOM).decode(errors="replace"))


class _Again:
    """A stream of which the beginning was read, read from its beginning."""

    def __init__(self, taken: list[bytes], stream: LineSource) -> None:
        self._taken = io.BytesIO(b"".join(taken))
        self._left = True
        self._stream = stream

    def readline(self, limit: int, /) -> bytes:
        """Return the next line with its end, or at most ``limit`` bytes of it."""
        if not self._left:
            return self._stream.readline(limit)
        piece = self._taken.readline(limit)
        if not piece.endswith(b"\n") and len(piece) < limit:
            self._left = False
            piece += self._stream.readline(limit - len(piece))
        return piece


class _CarriageReturns:
    """A stream whose lines end with CR, CRLF or LF, with LF at their ends."""

    def __init__(self, stream: LineSource) -> None:
        self._stream = stream
        self._held = io.BytesIO()

    def readline(self, limit: int, /) -> bytes:
        """Return the next line with its end, or at most ``limit`` bytes of it."""
        line = self._held.readline(limit)
        while not line.endswith(b"\n") and len(line) < limit:
            piece = self._stream.readline(_PIECE)
            if not piece:
                break
            if piece.endswith(b"\r"):
                piece += self._stream.readline(1)
            self._held = io.BytesIO(piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n"))
            line += self._held.readline(limit - len(line))
        return line


class _Gzip:
    """Lines of a gzip file, unpacked as they are read: what is packed in little is never held at its full size."""

    def __init__(self, packed: LineSource) -> None:
        self._stream = io.BufferedReader(gzip.GzipFile(fileobj=cast("BinaryIO", _Readable(packed)), mode="rb"))

    def readline(self, limit: int, /) -> bytes:
        """Return the next line with its end, or at most ``limit`` bytes of it.

        Raises:
            InputError: The file is damaged.
        """
        try:
            return self._stream.readline(limit)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise InputError(
                "the input is compressed with gzip and is damaged or cut short; make it again, or see how far "
                "`gunzip -c` gets"
            ) from error


class _Readable:
    """A source of lines as the binary file that ``gzip`` reads."""

    def __init__(self, stream: LineSource) -> None:
        self._stream = stream

    def read(self, size: int = _PIECE) -> bytes:
        """Return at most ``size`` bytes; none at the end."""
        # Packed bytes have a line's end every 256 bytes or so: a piece for each would be slow to unpack.
        pieces, left = [], size
        while left > size // 2 and (piece := self._stream.readline(left)):
            pieces.append(piece)
            left -= len(piece)
        return b"".join(pieces)
