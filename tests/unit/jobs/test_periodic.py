from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from helix_jobs.errors import BrokerUnreachableError
from helix_jobs.jobs.periodic import Periodic

if TYPE_CHECKING:
    import pytest


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
