from __future__ import annotations

import errno
import threading

import pytest

from helix_jobs.errors import BrokerUnreachableError
from helix_jobs.periodic import Periodic


def test_it_goes_on_whatever_a_call_raises(caplog: pytest.LogCaptureFixture) -> None:
    errors = [BrokerUnreachableError("away"), ValueError("a bug")]
    done = threading.Event()

    def duty() -> None:
        if errors:
            raise errors.pop(0)
        done.set()

    periodic = Periodic("helix-duty", duty, 0.001)
    periodic.start()
    assert done.wait(20)
    periodic.stop(20)
    assert "helix-duty: away; trying again" in caplog.text
    assert "unexpected error" in caplog.text


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (BrokerUnreachableError("away"), "helix-duty: away; trying again"),
        (OSError(errno.EMFILE, "Too many open files"), "LimitNOFILE"),
        (ValueError("a bug"), "helix-duty: unexpected error (ValueError), trying again"),
    ],
    ids=repr,
)
def test_a_trouble_that_lasts_is_told_once_and_its_end_too(
    caplog: pytest.LogCaptureFixture, error: Exception, said: str
) -> None:
    caplog.set_level("INFO", logger="helix_jobs")
    calls = iter([error] * 5 + [None] * 3 + [error] * 5)
    done = threading.Event()

    def duty() -> None:
        try:
            now = next(calls)
        except StopIteration:
            done.set()
            return
        if now is not None:
            raise now

    periodic = Periodic("helix-duty", duty, 0.001)
    periodic.start()
    assert done.wait(20)
    periodic.stop(20)
    texts = [record.getMessage() for record in caplog.records]
    over = "helix-duty: it works again"
    assert [said in text or text == over for text in texts] == [True] * 4
    assert [text == over for text in texts] == [False, True, False, True]
    assert ("Traceback" in caplog.text) is isinstance(error, ValueError)


def test_nobody_waits_for_a_call_that_hangs() -> None:
    begun, released = threading.Event(), threading.Event()

    def duty() -> None:
        begun.set()
        released.wait(60)

    periodic = Periodic("helix-duty", duty, 0.001)
    periodic.start()
    assert begun.wait(20)
    periodic.stop(0.0)
    released.set()
    periodic.stop(20)
