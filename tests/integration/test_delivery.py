"""Messages that get lost and messages that are none."""

from __future__ import annotations

import json
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from helix_jobs.time_limits import TimeLimits
from helix_jobs.worker import process as worker
from tests.redis_client import redis_client
from tests.worker_box import flush, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.worker_box import Box

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.redis,
    pytest.mark.skipif(sys.platform == "win32", reason="no embedded server on Windows"),
]


@pytest.fixture
def quick_worker(services_box: Box, short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Box]:
    """A worker on a thread of this process whose reconciler waits for a second, not for half a minute."""
    time_limits = TimeLimits(reconcile=0.2, republish=1.0)
    monkeypatch.setattr("tempfile.tempdir", str(short_tmp))
    monkeypatch.setenv("HELIX_FAKE_STEP_SECONDS", "0.03")
    stop, ready, codes = worker.StopRequests(), threading.Event(), []

    def run() -> None:
        codes.append(
            worker.run_worker(
                services_box.settings,
                time_limits=time_limits,
                stop=stop,
                on_ready=lambda _: ready.set(),
                handle_signals=False,
            )
        )

    thread = threading.Thread(target=run)
    thread.start()
    assert ready.wait(30)
    yield services_box
    stop.request_stop()
    thread.join(30)
    assert codes == [0]


@pytest.mark.thorough
def test_a_flushed_broker_loses_no_job(quick_worker: Box) -> None:
    box = quick_worker
    batch = box.submit(*[f"word {i} and more of it" for i in range(120)])
    wait_until(lambda: box.states(batch).get("succeeded", 0) > 5, "nothing runs")
    flush(box.settings.redis_url or "")
    box.wait_states(batch, succeeded=120)
    assert box.result_count(batch) == 120


def test_messages_that_are_none_do_no_harm(quick_worker: Box) -> None:
    box = quick_worker
    publisher = box.publisher()
    publisher.publish([Ghost(4711), Ghost(2**62)])
    template = {
        "body": "W1sxXSwge30sIHt9XQ==",
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"lang": "py", "task": "helix.run_job", "id": "x"},
        "properties": {
            "delivery_tag": "t",
            "delivery_info": {"exchange": "", "routing_key": box.names.queue},
            "body_encoding": "base64",
            "priority": 0,
        },
    }
    changes = (
        {"body": "NQ=="},  # 5
        {"body": "bnVsbA=="},  # null
        {"body": "W1tdLCB7fSwge31d"},  # no arguments
        {"body": "W1siMTsgcm0gLXJmIC8iXSwge30sIHt9XQ=="},  # a string for an id
        {"body": "W1stMV0sIHt9LCB7fV0="},  # a negative id
        {"body": "W1t0cnVlXSwge30sIHt9XQ=="},  # true
        {"body": "W1sxXSwgeyJhIjogMX0sIHt9XQ=="},  # keyword arguments
        {"body": "!!!"},
        {"content-type": "application/x-python-serialize"},
        {"headers": {"task": "os.system", "id": "y"}},
        {"headers": None},
        {"headers": {}},
        {"properties": {}},
    )
    with redis_client(box.settings.redis_url or "") as client:
        for change in changes:
            client.lpush(box.names.queue, json.dumps(template | change))
        # More than the failures of Celery's loop that a worker puts up with.
        for _ in range(3):
            client.lpush(box.names.queue, b"\x80\x04no json", b"[]", b"5", b"null", b"[" * 100_000)

    batch = box.submit(*[f"word {i}" for i in range(30)])
    box.wait_states(batch, succeeded=30)
    wait_until(lambda: publisher.depth() == 0, "something is left")
    publisher.close()
    assert {row.attempts for row in box.rows(batch)} == {1}


class Ghost:
    """A job that does not exist."""

    priority = 0

    def __init__(self, job_id: int) -> None:
        self.id = job_id
