"""What of Celery's and kombu's own words about a refusal reaches the log."""

from __future__ import annotations

import logging
import sys

import pytest
from kombu.asynchronous.timer import Entry, Timer
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ReadOnlyError, ResponseError

from helix_jobs.broker.celery.patient_consumer import WHO_LOG_REFUSALS, unless_refused


def record(*args: object, raised: Exception | None = None) -> logging.LogRecord:
    info = None
    if raised is not None:
        try:
            raise raised
        except type(raised):
            info = sys.exc_info()
    return logging.LogRecord("name", logging.WARNING, "path", 1, "%s" * len(args), args, info)


@pytest.mark.parametrize("refusal", [ReadOnlyError("x"), ResponseError("WRONGTYPE")])
def test_refusals_are_left_to_the_one_line(refusal: Exception) -> None:
    assert not unless_refused(record("lost", refusal))
    assert not unless_refused(record(raised=refusal))


@pytest.mark.parametrize("other", [RedisConnectionError("gone"), ValueError("ours")])
def test_everything_else_is_said(other: Exception) -> None:
    assert unless_refused(record("lost", other))
    assert unless_refused(record(raised=other))
    assert unless_refused(record())


def test_what_kombu_does_every_few_seconds_logs_where_the_filter_is(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in WHO_LOG_REFUSALS:  # a worker that ran in this process has left its filters
        monkeypatch.setattr(logging.getLogger(name), "filters", [])

    def refused() -> None:
        raise ReadOnlyError("You can't write against a read only replica.")

    with caplog.at_level(logging.ERROR):
        Timer().apply_entry(Entry(refused))
    assert caplog.records
    assert {each.name for each in caplog.records} <= set(WHO_LOG_REFUSALS)
    assert not any(unless_refused(each) for each in caplog.records)
