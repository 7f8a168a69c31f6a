"""Lines of any length and any number of lines: what is too long, and how little memory reading takes."""

from __future__ import annotations

import io
import json
import sys
import tracemalloc

import pytest

from helix_jobs.errors import BadLine
from helix_jobs.intake.lines import LineReader
from helix_jobs.intake.raw_lines import MAX_LINE_BYTES
from helix_jobs.new_job import NewJob
from tests.unit.intake.request_lines import GREEDY, read, read_one


def test_the_limit_counts_the_line_without_its_end():
    def line(size: int) -> bytes:
        return b'{"prompt": "' + b"x" * (size - 14) + b'"}'

    at, over = line(MAX_LINE_BYTES), line(MAX_LINE_BYTES + 1)
    good = b'{"prompt": "a"}'
    for end in (b"\n", b"\r\n"):
        items = read(end.join([at, over, good]))
        assert [type(item) for item in items] == [NewJob, BadLine, NewJob]
        assert items[1] == BadLine(2, "(line)", "is longer than 4 MiB", "split it or shorten the prompt")
    assert isinstance(read_one(at), NewJob)
    assert isinstance(read_one(over), BadLine)


@pytest.mark.parametrize("end", [b"\n", b"\r\n"], ids=["LF", "CRLF"])
@pytest.mark.parametrize("size", [MAX_LINE_BYTES - 4, MAX_LINE_BYTES - 1, MAX_LINE_BYTES, MAX_LINE_BYTES + 1])
def test_a_mark_before_a_long_line_counts_neither_as_its_bytes_nor_as_a_line(size: int, end: bytes):
    mark, good = b"\xef\xbb\xbf", b'{"prompt": "a"}'
    line = b'{"prompt": "' + b"x" * (size - 14) + b'"}'
    rejects = io.BytesIO()
    items = read(end.join([mark + line, mark + line, good]), rejects=rejects)
    fits = size <= MAX_LINE_BYTES
    kind = NewJob if fits else BadLine
    assert [(type(item), item.line) for item in items] == [(kind, 1), (kind, 2), (NewJob, 3)]
    assert rejects.getvalue() == (b"" if fits else (mark + line + end) * 2)


@pytest.mark.parametrize("letter", ["x", "ж", "語", "😀", "\n", "\x7f"])
def test_a_mapping_is_as_long_as_the_same_line_of_a_file(letter: str):
    def line(size: int) -> dict[str, str]:
        room = size - len('{"prompt":""}')
        count, rest = divmod(room, len(json.dumps(letter, ensure_ascii=False).encode()) - 2)
        return {"prompt": letter * count + "x" * rest}

    at, over = line(MAX_LINE_BYTES), line(MAX_LINE_BYTES + 1)
    items = list(LineReader(GREEDY).read_mappings([at, over, {"prompt": "a"}]))
    assert [type(item) for item in items] == [NewJob, BadLine, NewJob]
    assert items[0].request["prompt"] == at["prompt"]
    assert items[1] == BadLine(2, "(line)", "is longer than 4 MiB", "split it or shorten the prompt")
    as_file = [json.dumps(item, ensure_ascii=False, separators=(",", ":")).encode() for item in (at, over)]
    assert [type(read_one(data)) for data in as_file] == [NewJob, BadLine]


def test_half_of_a_surrogate_pair_in_a_long_mapping_is_named():
    (item,) = LineReader(GREEDY).read_mappings([{"prompt": "ж" * 1_000_000 + "\ud800"}])
    assert item == BadLine(1, "prompt", "holds half of a surrogate pair", "remove it")


class _Endless(io.RawIOBase):
    """A line of ``size`` bytes that never stands in memory, then a good one."""

    def __init__(self, size: int) -> None:
        self.left = size
        self.tail = io.BytesIO(b'\n{"prompt": "a"}\n')

    def readline(self, limit: int = -1) -> bytes:
        if self.left == 0:
            return self.tail.readline(limit)
        taken = min(self.left, limit)
        self.left -= taken
        return b"x" * taken


def test_a_huge_line_is_skipped_without_being_held():
    tracemalloc.start()
    try:
        items = list(LineReader(GREEDY).read(_Endless(256 * 1024 * 1024)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [(type(item), item.line) for item in items] == [(BadLine, 1), (NewJob, 2)]
    assert peak < 3 * MAX_LINE_BYTES


class _ManyLines:
    """Lines that are made as they are read."""

    def __init__(self, count: int) -> None:
        self.lines = (b'{"prompt": "hello", "custom_id": "request-%d"}\n' % number for number in range(count))

    def readline(self, limit: int) -> bytes:
        return next(self.lines, b"")[:limit]


@pytest.mark.parametrize("count", [20_000, pytest.param(200_000, marks=pytest.mark.slow)])
def test_memory_stays_flat_over_many_lines_with_custom_ids(count: int):
    blocks = []
    for number, item in enumerate(LineReader(GREEDY).read(_ManyLines(count)), start=1):
        assert isinstance(item, NewJob)
        if number in (1000, count):
            blocks.append(sys.getallocatedblocks())
    # One object kept for each line would be 19,000 blocks.
    assert blocks[1] - blocks[0] < 2000
