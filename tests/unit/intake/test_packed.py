"""Packed lines: each kind is unpacked as it is read, within bounds of memory, or refused in one sentence."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import sys
import tracemalloc
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helix_jobs.errors import BadLine, InputError
from helix_jobs.intake.file_formats import open_lines
from helix_jobs.intake.lines import LineReader
from helix_jobs.new_job import NewJob
from tests.unit.intake.request_lines import GREEDY

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

LINES = b'{"prompt": "one"}\n{"prompt": "two"}\n'
PACKERS = {"gzip": lambda data: gzip.compress(data, mtime=0), "bzip2": bz2.compress, "xz": lzma.compress}
PACKERS["zstd"] = zstd.compress
each_kind = pytest.mark.parametrize("kind", PACKERS)


def prompts(data: bytes) -> list[str | BadLine]:
    items = LineReader(GREEDY).read(open_lines(io.BytesIO(data)))
    return [item.request["prompt"] if isinstance(item, NewJob) else item for item in items]


@pytest.mark.thorough(fast=2)
@each_kind
def test_lines_are_unpacked(kind):
    pack = PACKERS[kind]
    assert prompts(pack(LINES)) == ["one", "two"]
    assert prompts(pack(LINES[:18]) + pack(LINES[18:])) == ["one", "two"]
    assert prompts(pack(b"") + pack(LINES)) == ["one", "two"]
    many = b"".join(b'{"prompt": "%d"}\n' % number for number in range(30_000))
    assert prompts(pack(many)) == [str(number) for number in range(30_000)]


def test_padding_of_xz_is_passed_over():
    assert prompts(lzma.compress(LINES) + bytes(8) + lzma.compress(LINES) + bytes(4)) == ["one", "two"] * 2


@each_kind
@pytest.mark.parametrize("damage", [lambda p: p[:-9], lambda p: p + b"tail", lambda p: p[:20] + b"\xff" * 40 + p[60:]])
def test_damage_is_one_sentence(kind, damage):
    with pytest.raises(InputError, match=f"compressed with {kind} and is damaged or cut short"):
        prompts(damage(PACKERS[kind](b"".join(b'{"prompt": "%d"}\n' % (number**9) for number in range(300)))))


@pytest.mark.thorough(fast=1)
@each_kind
def test_a_small_file_that_unpacks_to_a_large_line_is_never_held(kind):
    packed = PACKERS[kind](b'{"prompt": "' + b"x" * (64 * 1024 * 1024) + b'"}\n' + LINES)
    tracemalloc.start()
    try:
        too_long, *rest = prompts(packed)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert isinstance(too_long, BadLine)
    assert rest == ["one", "two"]
    assert peak < 20 * 1024 * 1024


def test_a_file_that_asks_for_gigabytes_to_be_unpacked_is_refused():
    packed = bytearray(lzma.compress(LINES))
    # The block's header says how large the dictionary is; an encoder of such a one would itself take gigabytes.
    place = packed.index(b"\x21\x01") + 2  # behind the filter's id and the size of its properties
    packed[place] = 36  # 2 << 29: one gibibyte
    length = (packed[12] + 1) * 4
    packed[12 + length - 4 : 12 + length] = zlib.crc32(packed[12 : 12 + length - 4]).to_bytes(4, "little")
    with pytest.raises(InputError, match=r"takes more than 256 MiB to unpack; unpack it: xz -dc FILE"):
        prompts(bytes(packed))


def test_a_python_without_zstd_says_what_brings_it(monkeypatch):
    for name in ("compression.zstd", "backports.zstd"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=r"backports\.zstd: run pip install .* or unpack it: zstd -dc FILE"):
        prompts(zstd.compress(LINES))


@given(st.sampled_from(sorted(PACKERS)), st.binary(max_size=60), st.integers(0, 60))
@settings(deadline=None)
def test_no_damage_is_anything_but_an_error_of_helix(kind, noise, place):
    packed = PACKERS[kind](LINES)
    try:
        prompts(packed[:place] + noise + packed[place:])
    except InputError as error:
        assert str(error).isprintable()  # noqa: PT017  (either outcome is fine)
