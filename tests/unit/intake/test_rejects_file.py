"""The file of bad lines: in its place when it is finished, given up where the input is not to blame."""

from __future__ import annotations

import errno
import io
from pathlib import Path

import pytest

from helix_jobs.errors import InputError
from helix_jobs.intake.sources import RejectsFile

FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="Linux's device that is full")


@pytest.fixture
def place(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b"earlier")
    return path


def fail_with(error, destination):
    """Write a bad line and meet an error; returns what reaches the caller."""
    with pytest.raises(type(error)) as caught:
        meet(error, destination)
    return caught.value


def meet(error, destination):
    with RejectsFile(destination) as rejects:
        rejects.write(b"bad\n")
        raise error


def test_it_is_there_when_it_is_finished_and_finished_once(place):
    with RejectsFile(place) as rejects:
        rejects.write(b"bad\n")
        assert place.read_bytes() == b"earlier"
        rejects.finish()
        assert place.read_bytes() == b"bad\n"
    assert [path.name for path in place.parent.iterdir()] == [place.name]


def test_bad_lines_of_an_input_that_is_refused_are_kept(place):
    error = InputError("too many lines")
    assert fail_with(error, place) is error
    assert place.read_bytes() == b"bad\n"


@needs_full
def test_an_input_that_is_refused_stays_the_error_and_the_list_is_told_besides():
    error = InputError("too many lines")
    assert fail_with(error, FULL) is error
    assert "".join(error.__notes__).startswith("the bad lines: /dev/full cannot be written: No space left on device")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ConnectionError(errno.ECONNRESET, "reset"), ValueError("bug")])
def test_another_error_leaves_what_was_there_and_is_not_taken_for_one_of_the_list(place, error):
    assert fail_with(error, place) is error
    assert [(path.name, path.read_bytes()) for path in place.parent.iterdir()] == [(place.name, b"earlier")]


@needs_full
def test_another_error_is_not_hidden_by_a_list_that_is_given_up():
    error = KeyboardInterrupt()
    assert fail_with(error, FULL) is error


@needs_full
def test_a_line_that_cannot_be_written_is_told_once():
    with pytest.raises(InputError, match="full cannot be written") as caught:
        finish(FULL, b"x" * 100_000)
    assert not hasattr(caught.value, "__notes__")


def test_the_buffer_of_the_callers_stream_is_written_too():
    class Full(io.BytesIO):
        def flush(self):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(InputError, match="the stream for bad lines cannot be written") as caught:
        finish(Full(), b"bad")
    assert not hasattr(caught.value, "__notes__")


def finish(destination, line):
    with RejectsFile(destination) as rejects:
        rejects.write(line)
        rejects.finish()
