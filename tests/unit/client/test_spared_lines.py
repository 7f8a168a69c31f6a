"""Lines that nobody computes, as a plan counts them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from helix_jobs.client import spared_lines
from helix_jobs.client.spared_lines import SparedLines
from helix_jobs.errors import BadLine, DatabaseUnreachableError
from helix_jobs.new_job import NewJob
from helix_jobs.storage.answer_cache import AnswerSetup

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pytest

SETUP = AnswerSetup("a" * 32, "a" * 32, "a" * 32)


def job(line: int, text: str, size: int = 0) -> NewJob:
    return NewJob(line=line, custom_id=None, request={"prompt": text, "sampling": {}}, size=size)


def looked(spared: SparedLines, lines: Iterable[NewJob | BadLine]) -> list[bool]:
    """Whether each line is spared, where all others can be computed."""
    found = []
    for line, is_spared in spared.look(lines):
        found.append(is_spared)
        if isinstance(line, NewJob) and not is_spared:
            spared.compute_last()
    return found


def test_equal_lines_are_computed_once_without_a_database() -> None:
    lines: list[Any] = [job(1, "a"), job(2, "b"), BadLine(3, "prompt", "is missing", "give it"), job(4, "a")]
    assert looked(SparedLines(SETUP, wanted=None, read=None), lines) == [False, False, False, True]


def test_a_database_that_goes_away_ends_no_plan(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = []

    def away() -> Any:
        asked.append("asked")
        raise DatabaseUnreachableError("the database does not answer")

    monkeypatch.setattr(spared_lines, "_CHUNK", 2)
    spared = SparedLines(SETUP, wanted=None, read=away)
    assert looked(spared, [job(line, f"{line % 3}") for line in range(6)]) == [False] * 3 + [True] * 3
    assert asked == ["asked"]
    assert "stored answers are not counted any more" in caplog.text


def test_large_lines_are_looked_up_in_small_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spared_lines, "_CHUNK_BYTES", 1000)
    read = []

    def lines() -> Iterable[NewJob]:
        for number in range(5):
            read.append(number)
            yield job(number, f"{number}", size=600)

    spared = SparedLines(SETUP, wanted=None, read=None)
    next(iter(spared.look(lines())))
    assert read == [0, 1]
