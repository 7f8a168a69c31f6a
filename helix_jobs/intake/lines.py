"""Input lines -> validated job requests, streamed; stored requests -> the engine's.

Whatever the bytes are, every line becomes a ``JobRequest`` or a ``BadLine``; nothing is read whole into memory.
"""

from __future__ import annotations

import json
import re
from contextlib import closing
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol

from helix_jobs.engine.request import Request
from helix_jobs.engine.sampling_params import SamplingParams
from helix_jobs.errors import BadLine, InvalidFieldError, InvalidFieldsError
from helix_jobs.intake.chat_fields import check_chat_template_kwargs
from helix_jobs.intake.custom_ids import CustomIds
from helix_jobs.intake.forms import parse_line_object
from helix_jobs.intake.limits import NO_LIMITS, Limits
from helix_jobs.intake.line_faults import WHOLE_LINE, kind
from helix_jobs.intake.sampling_fields import SamplingReader
from helix_jobs.intake.text_encoding import narrow_encoding
from helix_jobs.intake.texts import check_messages, check_prompt

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

__all__ = [
    "MAX_LINE_BYTES",
    "BadLine",
    "JobRequest",
    "LineSource",
    "RejectSink",
    "derive_seed",
    "read_lines",
    "read_mappings",
    "refuse_unstorable",
    "to_engine_request",
]

MAX_LINE_BYTES: Final = 4 * 1024 * 1024

_SKIP_BYTES: Final = 64 * 1024
_BOM: Final = b"\xef\xbb\xbf"
_UTF16_BOMS: Final = (b"\xff\xfe", b"\xfe\xff")
# An escape that may stand for NUL or half a surrogate pair; only lines that match are searched value by value.
_SUSPECT_ESCAPE: Final = re.compile(rb"\\u(?:0000|[dD][89a-fA-F])")
_UNSTORABLE: Final = re.compile("[\0\ud800-\udfff]")
_SEED_LOW: Final = -(2**63)
_SEED_HIGH: Final = 2**64 - 1


class LineSource(Protocol):
    """What is needed of a binary stream."""

    def readline(self, limit: int, /) -> bytes:
        """Return the next line with its end, or at most ``limit`` bytes of it; empty at the end."""
        ...


class RejectSink(Protocol):
    """Where the bytes of bad lines go."""

    def write(self, data: bytes, /) -> object:
        """Append bytes."""
        ...


@dataclass(frozen=True, slots=True)
class JobRequest:
    """One accepted line.

    Attributes:
        line: Line number, from 1.
        custom_id: The person's own name of the job, unique in the batch.
        request: What ``jobs.request`` stores: ``prompt`` or ``messages`` (and ``chat_template_kwargs`` if given),
            ``sampling``, ``metadata``, ``seed``, and for OpenAI lines ``endpoint`` and ``model``.
        priority: 0 to 9, higher runs first.
        size: Bytes of the line.
    """

    line: int
    custom_id: str | None
    request: dict[str, Any]
    priority: int
    size: int


def derive_seed(batch_id: str, line: int) -> int:
    """Return the 64-bit seed of a job whose line names none."""
    return int.from_bytes(blake2b(f"{batch_id}:{line}".encode(), digest_size=8).digest(), "big")


def read_lines(
    stream: LineSource,
    defaults: SamplingParams,
    *,
    batch_id: str,
    rejects: RejectSink | None = None,
    limits: Limits = NO_LIMITS,
) -> Iterator[JobRequest | BadLine]:
    """Read JSONL from a binary stream: one ``JobRequest`` or ``BadLine`` for each line that is not blank.

    At most one line (4 MiB) is held. A byte order mark on a line, CRLF and a missing last newline are tolerated.

    Args:
        stream: The lines, UTF-8.
        defaults: Sampling fields of lines that do not give them.
        batch_id: The batch the jobs will belong to; seeds are derived from it.
        rejects: Receives the bytes of bad lines as they stood, each ended by a newline.
        limits: How large a line may be.
    """
    yield from _read(_split(stream, rejects), defaults, batch_id, rejects, limits)


def read_mappings(
    items: Iterable[Mapping[str, Any]],
    defaults: SamplingParams,
    *,
    batch_id: str,
    rejects: RejectSink | None = None,
    limits: Limits = NO_LIMITS,
) -> Iterator[JobRequest | BadLine]:
    """The same for parsed lines handed over in Python; ``line`` is the position, from 1.

    Each goes through JSON text, so that one set of rules holds for both and nothing is shared with the caller.
    """
    yield from _read(_encode(items), defaults, batch_id, rejects, limits)


def to_engine_request(job_id: int, stored: object) -> Request:
    """Turn what the database holds into the engine's request, trusting nothing.

    Raises:
        InvalidRequestError: The stored request is malformed.
    """
    if not isinstance(stored, dict):
        raise InvalidFieldError("request", f"is {kind(stored)}, not an object", "submit the line again")
    seed, sampling = stored.get("seed"), stored.get("sampling", {})
    if isinstance(seed, bool) or not isinstance(seed, int) or not _SEED_LOW <= seed <= _SEED_HIGH:
        raise InvalidFieldError("seed", "is no 64-bit integer", "submit the line again")
    if not isinstance(sampling, dict):
        raise InvalidFieldError("sampling", f"is {kind(sampling)}, not an object", "submit the line again")
    prompt, messages = stored.get("prompt"), stored.get("messages")
    if (prompt is None) == (messages is None):
        raise InvalidFieldError("request", "does not hold one of prompt and messages", "submit the line again")
    return Request(
        request_id=str(job_id),
        sampling_params=SamplingParams.from_mapping(sampling),
        seed=seed,
        prompt=None if prompt is None else check_prompt(prompt),
        messages=None if messages is None else tuple(check_messages(messages)),
        chat_template_kwargs=check_chat_template_kwargs(stored.get("chat_template_kwargs"), "chat_template_kwargs"),
    )


@dataclass(frozen=True, slots=True)
class _RawLine:
    """A line's bytes without its end, or why there are none."""

    number: int
    data: bytes
    refusal: InvalidFieldError | None = None


def _read(
    lines: Iterable[_RawLine], defaults: SamplingParams, batch_id: str, rejects: RejectSink | None, limits: Limits
) -> Iterator[JobRequest | BadLine]:
    sampling = SamplingReader(defaults)
    with closing(CustomIds()) as custom_ids:
        for raw in lines:
            try:
                if raw.refusal is not None:
                    raise raw.refusal
                parsed = parse_line_object(_decode(raw.data, first=raw.number == 1), sampling, limits)
                if parsed.custom_id is not None:
                    custom_ids.add(parsed.custom_id, raw.number)
            except InvalidFieldError as error:
                # The splitter has already passed on a line that was too long to hold.
                if rejects is not None and raw.data:
                    rejects.write(raw.data + b"\n")
                first, *others = _bad_lines(raw.number, error)
                yield replace(first, others=tuple(others)) if others else first
                continue
            request = parsed.request
            user_seed = request["sampling"].get("seed")
            request["seed"] = derive_seed(batch_id, raw.number) if user_seed is None else user_seed
            yield JobRequest(raw.number, parsed.custom_id, request, parsed.priority, len(raw.data))


def _bad_lines(number: int, error: InvalidFieldError) -> list[BadLine]:
    faults = error.faults if isinstance(error, InvalidFieldsError) else (error,)
    return [BadLine(number, fault.field or '""', _cut(fault.reason), fault.remedy) for fault in faults]


def _split(stream: LineSource, rejects: RejectSink | None) -> Iterator[_RawLine]:
    """Cut the stream into lines; the tail of a line over the limit is passed through to ``rejects``, never held."""
    # A piece that is cut is over the limit then, whatever part of it does not count.
    limit = len(_BOM) + MAX_LINE_BYTES + len(b"\r\n")
    number = 0
    while piece := stream.readline(limit):
        number += 1
        ended = piece.endswith(b"\n")
        # A mark may stand on any line: files that have one were put together.
        data = piece.removesuffix(b"\n").removesuffix(b"\r").removeprefix(_BOM)
        if len(data) <= MAX_LINE_BYTES:
            if data.strip():
                yield _RawLine(number, data)
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
        yield _RawLine(number, b"", too_long)


def _encode(items: Iterable[Mapping[str, Any]]) -> Iterator[_RawLine]:
    for number, item in enumerate(items, start=1):
        try:
            plain = item if isinstance(item, dict) else _plain(item)
            # Escapes show the parser half of a surrogate pair, which UTF-8 cannot spell.
            data = json.dumps(plain).encode()
        except (TypeError, ValueError, RecursionError) as error:
            reason = f"cannot be written as JSON ({type(error).__name__})"
            yield _RawLine(number, b"", InvalidFieldError(WHOLE_LINE, reason, "use plain JSON types"))
            continue
        if len(data) > MAX_LINE_BYTES and _size_in_a_file(plain) > MAX_LINE_BYTES:
            too_long = InvalidFieldError(WHOLE_LINE, "is longer than 4 MiB", "split it or shorten the prompt")
            yield _RawLine(number, b"", too_long)
            continue
        yield _RawLine(number, data)


def _size_in_a_file(value: object) -> int:
    """Bytes of the shortest line that says this. An escape has six bytes where a file has one to four."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return len(text.encode("utf-8", "surrogatepass"))


def _plain(item: object) -> object:
    """A mapping that is no dict as one; anything else as it is, for the parser to refuse by name."""
    from collections.abc import Mapping

    return dict(item) if isinstance(item, Mapping) else item


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise InvalidFieldError(_cut(twice, 40), "is given twice", "keep one of them")
    return values


def _float(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise InvalidFieldError(WHOLE_LINE, "holds a number beyond floating point", "give a smaller number")
    return value


def _constant(name: str) -> NoReturn:
    raise InvalidFieldError(WHOLE_LINE, f"holds {name}, which is not JSON", "give a number or null")


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_object, parse_float=_float, parse_constant=_constant)


def _decode(data: bytes, *, first: bool) -> object:
    """Parse one line strictly.

    Raises:
        InvalidFieldError: It is not UTF-8, not JSON, or holds text that Postgres cannot store.
    """
    if b"\0" in data or (first and data.startswith(_UTF16_BOMS)):
        remedy = "save the file as UTF-8 (it may be UTF-16)"
        raise InvalidFieldError(WHOLE_LINE, "holds NUL bytes or a UTF-16 mark", remedy)
    try:
        values = _DECODER.decode(data.decode())
    except UnicodeDecodeError as error:
        encoding = narrow_encoding(data)
        assert encoding is not None, "it did not decode"
        remedy = f"it looks like {encoding.what}; if all of the file is: {encoding.command} | helix submit -"
        raise InvalidFieldError(WHOLE_LINE, f"is not UTF-8 at byte {error.start + 1}", remedy) from error
    except json.JSONDecodeError as error:
        reason = f"is not JSON: {error.msg} at character {error.pos + 1}"
        raise InvalidFieldError(WHOLE_LINE, reason, "write one JSON object on one line") from error
    except ValueError as error:
        raise InvalidFieldError(WHOLE_LINE, "holds a number with too many digits", "shorten it") from error
    except RecursionError as error:
        raise InvalidFieldError(WHOLE_LINE, "is nested too deeply", "flatten it") from error
    if _SUSPECT_ESCAPE.search(data):
        refuse_unstorable(values)
    return values


def refuse_unstorable(values: object) -> None:
    """Refuse NUL and unpaired surrogates: JSON can spell them, UTF-8 and Postgres cannot hold them.

    Raises:
        InvalidFieldError: There is one; the field is the path to it.
    """
    stack: list[tuple[str, object]] = [(WHOLE_LINE, values)]
    while stack:
        path, value = stack.pop()
        if isinstance(value, str):
            found = _UNSTORABLE.search(value)
            if found:
                reason = "holds a NUL character" if found[0] == "\0" else "holds half of a surrogate pair"
                raise InvalidFieldError(_cut(path), reason, "remove it")
        elif isinstance(value, dict):
            for name, item in value.items():
                inner = ascii(name)[1:-1] if path == WHOLE_LINE else f"{path}.{ascii(name)[1:-1]}"
                stack += [(inner, item), (inner, name)]
        elif isinstance(value, list):
            stack += [(f"{path}[{index}]", item) for index, item in enumerate(value)]


def _cut(text: str, limit: int = 200) -> str:
    """A text from the file as it may stand in a message: printable, cut."""
    cut = text if len(text) <= limit else text[: limit - 3] + "..."
    return cut if cut.isprintable() else ascii(cut)[1:-1]
