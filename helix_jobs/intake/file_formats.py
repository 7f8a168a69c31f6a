"""Detect a file's format by its first bytes: lines of JSON, packed lines, or another format, which is refused by name.

Without this, a file without any lines of JSON would be reported line by line, and each report would mislead.
"""

from __future__ import annotations

import io
import json
import re
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from helix_jobs.errors import InputError
from helix_jobs.intake.packed import KINDS, packing_of, unpacked
from helix_jobs.intake.text_encoding import narrow_encoding, wide_encoding

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from helix_jobs.intake.raw_lines import LineSource

# Enough for the first two lines of any file that a person edits; longer lines are judged by their beginning.
_LOOK: Final = 64 * 1024
_PIECE: Final = 64 * 1024
# Bytes of a text file that are read to detect its encoding.
_ENCODING_LOOK: Final = 16 * 1024 * 1024
_BOM: Final = b"\xef\xbb\xbf"

_MAX_BLANK_LINES: Final = 100


@dataclass(frozen=True, slots=True)
class _Other:
    """The format of a file that holds no lines of JSON.

    Attributes:
        what: The format's name in a sentence.
        command: The command that converts the file to lines of JSON, or closer to them; FILE stands for its name.
        note: What else the command does or needs.
        is_table: Its rows can be submitted with a prompt; the command is then that of ``helix submit`` itself.
    """

    what: str
    command: str
    note: str = ""
    is_table: bool = False


def _table(what: str, column: str = "COLUMN") -> _Other:
    value = column if column.isidentifier() else f"row[{json.dumps(column)}]"
    question = f"--prompt {shlex.quote('Summarise: {{ ' + value + ' }}')}"
    return _Other(what, f"helix submit FILE {question}", is_table=True)


# Two programs are called yq, and their options differ.
_FROM_YAML: Final = (
    "import json, sys, yaml; "
    'print(*(json.dumps(line) for part in yaml.safe_load_all(open(sys.argv[1], "rb")) '
    'for line in (part if isinstance(part, list) else [part])), sep="\\n")'
)
# First bytes -> the file's format.
_SIGNATURES: Final[Mapping[bytes, _Other]] = {
    b"\x04\x22\x4d\x18": _Other("compressed with lz4", "lz4 -dc FILE"),
    b"PAR1": _table("Parquet"),
    b"ARROW1": _table("Arrow (Feather)"),
    b"PK\x03\x04": _Other(
        "a ZIP archive or an Excel workbook",
        "unzip -p FILE",
        "a workbook: helix submit FILE --prompt 'Summarise: {{ COLUMN }}'",
    ),
    b"7z\xbc\xaf\x27\x1c": _Other("a 7z archive", "7z x -so FILE"),
    b"SQLite format 3\0": _Other(
        "an SQLite database",
        "sqlite3 FILE \"SELECT json_object('prompt', COLUMN) FROM TABLE\"",
    ),
    b"%PDF-": _Other("a PDF document", "pdftotext FILE - | jq -Rsc '{prompt: .}'"),
}
# Control characters that no text holds. Tabs, form feeds and colour escapes do occur in texts.
_NO_TEXT: Final = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
_HEADER_CELL: Final = re.compile(r'"?[A-Za-z_][\w .-]{0,63}"?')
_YAML_LINE: Final = re.compile(r"---\s*$|%YAML|(?:- )?[A-Za-z_][\w-]*:(?:\s|$)|- \S")
_COLUMNS: Final = frozenset({"prompt", "text", "question", "input", "instruction"})
_LIST_MEMBER: Final = re.compile(r'"([A-Za-z_]\w*)"\s*:\s*\[')
# Lists that belong to one request: an object that holds one is a request, not a wrapper of many.
_OWN_LISTS: Final = frozenset({"messages", "stop", "contents", "conversations", "input", "system", "parts"})


def open_lines(stream: LineSource, name: str | None = None) -> LineSource:
    """Return the stream's lines of JSON: unpacked if it is packed, with LF ends if it has carriage returns.

    Args:
        stream: The bytes, from their beginning.
        name: The path, for the command in an error message; None for standard input and other streams.

    Raises:
        InputError: The file has another format; the error names the format and the command that converts it.
    """
    first = stream.readline(_LOOK)
    if (packing := packing_of(first)) is not None:
        if isinstance(stream, _Unpacked):
            commands = dict(KINDS.values())
            raise _not_lines(_Other("compressed twice", f"{commands[stream.kind]} FILE | {commands[packing]}"), name)
        return open_lines(_Unpacked(packing, _Again([first], stream)), name)
    taken = [first]
    while taken[-1] and len(taken) < _MAX_BLANK_LINES and not taken[-1].removeprefix(_BOM).strip():
        taken.append(stream.readline(_LOOK))
    line = taken[-1]
    if (other := _other_bytes(line)) is not None:
        raise _not_lines(other, name)
    again = _Again(taken, stream)
    if _has_carriage_returns(line):
        return _CarriageReturns(again)
    text = line.removeprefix(_BOM).decode(errors="replace").strip()
    if text and not _is_whole_json(text):
        second = stream.readline(_LOOK) if line.endswith(b"\n") else b""
        again = _Again([*taken, second], stream)
        if not text.startswith(("{", "[")) and _NO_TEXT.search(line + second):
            raise InputError(f"{_shown(name) or 'the input'} is no text; give a file with one JSON object a line")
        if (other := _other_text(text, second.decode(errors="replace").strip())) is not None:
            # Characters beyond ASCII may come late in the text. Only of a file can more be read now.
            more = b"" if name is None else b"".join(_beginning(stream, _ENCODING_LOOK))
            is_whole = name is not None and not stream.readline(1)
            raise _not_lines(_with_encoding(other, line + second + more, is_whole=is_whole), name)
    return again


def no_table(first: bytes) -> str | None:
    """What a file is, by its first bytes, that no table can be read from; None for a text."""
    signed = next((other.what for signature, other in _SIGNATURES.items() if first.startswith(signature)), None)
    if signed is not None or wide_encoding(first) is not None:
        return signed
    return "no text" if _NO_TEXT.search(first.partition(b"\n")[0]) else None


def _other_bytes(first: bytes) -> _Other | None:
    for signature, other in _SIGNATURES.items():
        if first.startswith(signature):
            return other
    encoding = wide_encoding(first)
    return None if encoding is None else _Other(f"{encoding.what} text", encoding.command, encoding.note)


def _other_text(first: str, second: str) -> _Other | None:
    """Detect the format of a text whose first line alone is not JSON, also by its second line."""
    if first.startswith("[]"):
        return None
    if first.startswith("["):
        is_cut = _ends_too_early(first) or _ends_too_early(first.rstrip(","))
        return _Other("one JSON document over several lines", "jq -c '.[]' FILE") if is_cut else None
    if first.startswith("{"):
        return _object_over_lines(first, second)
    return _columns(first, second) or _free_text(first, second)


def _object_over_lines(first: str, second: str) -> _Other | None:
    if not _ends_too_early(first) or not second or second.startswith("{"):
        return None
    wrapped = _LIST_MEMBER.match(first.removeprefix("{").strip() or second)
    inside = f".{wrapped[1]}[]" if wrapped and wrapped[1] not in _OWN_LISTS else "."
    return _Other("JSON spread over several lines", f"jq -c '{inside}' FILE")


def _columns(first: str, second: str) -> _Other | None:
    for separator, what in ((",", "CSV"), ("\t", "tab-separated values"), (";", "CSV with semicolons")):
        cells = [cell.strip() for cell in first.split(separator)]
        if len(cells) > 1 and separator in second and all(map(_HEADER_CELL.fullmatch, cells)):
            names = [cell.strip('"') for cell in cells]
            return _table(what, next((name for name in names if name in _COLUMNS), names[-1]))
    return None


def _free_text(first: str, second: str) -> _Other | None:
    if not second or second.startswith(("{", "[")):
        return None
    if first.strip('"') in _COLUMNS:
        return _table("CSV", first.strip('"'))
    if _YAML_LINE.match(first):
        return _Other("YAML", f"python -c {shlex.quote(_FROM_YAML)} FILE")
    return _Other("plain text", "jq -Rc '{prompt: .}' FILE", "each line becomes a prompt")


def _with_encoding(other: _Other, data: bytes, *, is_whole: bool) -> _Other:
    """Add the encoding of a text that is not UTF-8: the programs in the commands read UTF-8 only."""
    encoding = narrow_encoding(data, is_whole=is_whole)
    if encoding is None or other.is_table:  # a table's encoding is detected when it is read
        return other
    return _Other(
        f"{other.what} in {encoding.what}",
        f"{encoding.command} | {other.command.replace('FILE', '/dev/stdin')}",
        "; ".join(filter(None, (other.note, encoding.note))),
    )


def _beginning(stream: LineSource, size: int) -> Iterator[bytes]:
    """The next pieces of the stream, ``size`` bytes at most."""
    while size and (piece := stream.readline(min(size, _PIECE))):
        size -= len(piece)
        yield piece


def _not_lines(other: _Other, name: str | None) -> InputError:
    shown = _shown(name)
    command = other.command.replace("FILE", "FILE" if shown is None else shlex.quote(shown))
    if other.is_table:
        return InputError(
            f"{shown or 'the input'} is {other.what}, not one JSON object a line; say what to ask about its rows: "
            f"{command if shown else command.replace('FILE', '-', 1)}"
        )
    # The message pipes the command's output: a file that the command wrote might be the one it reads.
    message = f"{shown or 'the input'} is {other.what}, not one JSON object a line; submit it with: {command}"
    return InputError(f"{message} | helix submit -{other.note and f' ({other.note})'}")


def _shown(name: str | None) -> str | None:
    return name if name is not None and name.isprintable() else None


def _is_whole_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _ends_too_early(text: str) -> bool:
    """Whether a text is valid JSON up to its last character, but incomplete."""
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return error.pos >= len(text.rstrip()) or not text[error.pos :].strip(" ,")
    except (ValueError, RecursionError):
        return False
    return False


def _has_carriage_returns(first: bytes) -> bool:
    """Whether the lines end with CR alone: the text before the first CR is a whole object."""
    line, end, rest = first.partition(b"\r")
    return bool(end) and rest not in (b"", b"\n") and _is_whole_json(line.removeprefix(_BOM).decode(errors="replace"))


class _Again:
    """A stream whose beginning has been read, to be read from its beginning again."""

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
    """A stream whose lines end with CR, CRLF or LF; yields lines that end with LF."""

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


class _Unpacked:
    """Lines of a packed file, unpacked as they are read: the unpacked text is never held whole."""

    def __init__(self, kind: str, packed: LineSource) -> None:
        self.kind = kind
        self._stream = unpacked(kind, _Readable(packed))

    def readline(self, limit: int, /) -> bytes:
        """Return the next line with its end, or at most ``limit`` bytes of it.

        Raises:
            InputError: The file is damaged.
        """
        return self._stream.readline(limit)


class _Readable:
    """A source of lines as the binary file that unpacking reads."""

    def __init__(self, stream: LineSource) -> None:
        self._stream = stream

    def read(self, size: int = _PIECE) -> bytes:
        """Return at most ``size`` bytes; none at the end."""
        # Packed bytes contain an LF every 256 bytes or so: unpacking each such piece alone would be slow.
        pieces, left = [], size
        while left > size // 2 and (piece := self._stream.readline(left)):
            pieces.append(piece)
            left -= len(piece)
        return b"".join(pieces)
