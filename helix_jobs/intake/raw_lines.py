"""RawLine: one line of an input before its JSON is parsed. A stream is cut into lines; a mapping becomes one line."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from helix_jobs.errors import InvalidFieldError
from helix_jobs.intake.line_faults import WHOLE_LINE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

MAX_LINE_BYTES: Final = 4 * 1024 * 1024

_SKIP_BYTES: Final = 64 * 1024
_BOM: Final = b"\xef\xbb\xbf"


class LineSource(Protocol):
    """The part of a binary stream's interface that reading lines needs."""

    def readline(self, limit: int, /) -> bytes:
        """Return the next line with its end, or at most ``limit`` bytes of it; empty at the end."""
        ...


class RejectSink(Protocol):
    """Receives the bytes of bad lines."""

    def write(self, data: bytes, /) -> object:
        """Append bytes."""
        ...


@dataclass(frozen=True, slots=True)
class RawLine:
    """A line's bytes without its end, or the reason why there are none.

    Attributes:
        number: Its number in the input.
        data: Its bytes.
        refusal: Why it is bad, if that is known before its JSON is parsed.
        original: What is written to the rejects if the line is bad; None for ``data`` itself.
    """

    number: int
    data: bytes
    refusal: InvalidFieldError | None = None
    original: bytes | None = None


def split(stream: LineSource, rejects: RejectSink | None) -> Iterator[RawLine]:
    """Cut the stream into lines; the tail of a line over the limit goes straight to ``rejects`` and is never held."""
    # With room for the parts that do not count, a piece that readline cuts here is certainly over the limit.
    limit = len(_BOM) + MAX_LINE_BYTES + len(b"\r\n")
    number = 0
    while piece := stream.readline(limit):
        number += 1
        ended = piece.endswith(b"\n")
        # A byte order mark may stand on any line: files that begin with one may have been concatenated.
        data = piece.removesuffix(b"\n").removesuffix(b"\r").removeprefix(_BOM)
        if len(data) <= MAX_LINE_BYTES:
            if data.strip():
                yield RawLine(number, data)
            continue
        if rejects is not None:
            rejects.write(piece)
        while not ended and (rest := stream.readline(_SKIP_BYTES)):
            ended = rest.endswith(b"\n")
            if rejects is not None:
                rejects.write(rest)
        if rejects is not None and not ended:
            rejects.write(b"\n")
        too_long = InvalidFieldError(WHOLE_LINE, "is longer than 4 MiB", "split it or shorten the prompt")
        yield RawLine(number, b"", too_long)


def encode(items: Iterable[Mapping[str, Any]]) -> Iterator[RawLine]:
    """Write each mapping as a line of JSON, within the same limit."""
    for number, item in enumerate(items, start=1):
        try:
            plain = item if isinstance(item, dict) else _plain(item)
            # ASCII escapes, so that the parser sees half of a surrogate pair, which UTF-8 cannot encode.
            data = json.dumps(plain).encode()
        except (TypeError, ValueError, RecursionError) as error:
            reason = f"cannot be written as JSON ({type(error).__name__})"
            yield RawLine(number, b"", InvalidFieldError(WHOLE_LINE, reason, "use plain JSON types"))
            continue
        if len(data) > MAX_LINE_BYTES and _size_in_a_file(plain) > MAX_LINE_BYTES:
            too_long = InvalidFieldError(WHOLE_LINE, "is longer than 4 MiB", "split it or shorten the prompt")
            yield RawLine(number, b"", too_long)
            continue
        yield RawLine(number, data)


def _size_in_a_file(value: object) -> int:
    """Bytes of the shortest line with this content: an escape takes six bytes, a character in a file one to four."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return len(text.encode("utf-8", "surrogatepass"))


def _plain(item: object) -> object:
    """Convert a mapping to a dict; leave any other object for the parser to refuse by name."""
    from collections.abc import Mapping

    return dict(item) if isinstance(item, Mapping) else item
