"""Anything at all in Redis: rejected, counted, and the worker lives."""

from __future__ import annotations

import base64
import itertools
import json
import socket
import urllib.request
from typing import TYPE_CHECKING, Any

from helix_jobs.storage.records import PublishableJob
from tests.acceptance.faults.oracle import Accepted
from tests.acceptance.faults.progress import wait_ended
from tests.acceptance.faults.scenario import Outcome, Size, scenario
from tests.worker_box import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.acceptance.faults.installation import Installation

OVERSIZED_BYTES = 8_000_000


def _body(value: object) -> str:
    return base64.b64encode(json.dumps(value).encode()).decode()


def _message(queue: str, **changes: Any) -> bytes:
    """One as Helix writes it, but for these parts."""
    message = {
        "body": _body([[1], {}, {}]),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"lang": "py", "task": "helix.run_job", "id": "1-x", "root_id": "1-x", "ignore_result": True},
        "properties": {
            "correlation_id": "1-x",
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": queue},
            "priority": 9,
            "body_encoding": "base64",
            "delivery_tag": "forged",
        },
    }
    return json.dumps(message | {name.replace("_", "-"): value for name, value in changes.items()}).encode()


def _junk(queue: str) -> Iterator[bytes]:
    """Malformed, oversized, unknown, and with more in them than a job id."""
    headers = {"lang": "py", "id": "1-x"}
    task = {**headers, "task": "helix.run_job"}
    return itertools.cycle(
        [
            b"\x80\x04no json",
            b"",
            b"[" * 50_000,
            b"[]",
            b"5",
            b"null",
            b'{"__type__": "uuid", "__value__": "none"}',
            _message(queue, properties={}),
            _message(queue, headers=None),
            _message(queue, headers={**headers, "task": "os.system"}),
            _message(queue, headers={**headers, "task": "celery.chord_unlock"}),
            _message(queue, headers={**task, "eta": "2999-01-01T00:00:00+00:00"}),
            _message(queue, headers={**task, "expires": "1999-01-01T00:00:00+00:00"}),
            _message(queue, headers={**task, "compression": "application/x-gzip"}),
            _message(queue, body="!!!"),
            _message(queue, body=_body([["1; rm -rf /"], {}, {}])),
            _message(queue, body=_body([[-1], {}, {}])),
            _message(queue, body=_body([[1], {"request": {"prompt": "mine"}}, {}])),
            _message(queue, body=_body([[1], {}, {"callbacks": [{"task": "helix.run_job", "args": [2]}]}])),
            _message(queue, content_type="application/x-python-serialize"),
        ]
    )


@scenario(
    "malformed, oversized, unknown and forged messages",
    quick=Size(jobs=60, faults=100),
    full=Size(jobs=2_000, faults=4_000),
)
def forged(installation: Installation, size: Size) -> Outcome:
    """Into the queue of a working worker; well-formed ones name jobs that wait, run, have ended or do not exist."""
    batch = installation.accept(size.jobs)
    ended = installation.accept(1)
    port = _free_port()
    worker = installation.start(None, "--metrics-port", str(port), fake_step_seconds="0.01")
    wait_ended(installation, batch, 4)
    queue = installation.names.queue
    with installation.redis.client() as client:
        for junk in itertools.islice(_junk(queue), size.faults):
            client.lpush(queue, junk)
        client.lpush(queue, b'"' + b"x" * OVERSIZED_BYTES + b'"', _message(queue, body="x" * OVERSIZED_BYTES))
        for broadcast in itertools.islice(_junk(queue), size.faults // 20):
            client.publish(f"/0.{queue}.pidbox", broadcast)
    forged = size.faults + size.faults // 20 + 2
    publisher = installation.publisher()
    known = [row.id for row in installation.rows(batch.batch_id)]
    publisher.publish([PublishableJob(job_id, 0) for job_id in (*known, 2**40, 2**62, 2**63 - 1)])
    publisher.close()
    installation.wait_done(batch, ended)
    wait_until(lambda: _rejected(port) >= forged, lambda: f"{_rejected(port)} were counted")
    assert worker.log.count("dropped ") < forged / 100 + 10, "each has a line of its own"
    assert worker.process.poll() is None, worker.log
    assert "Celery's consumer ended" not in worker.log, "the worker's loop broke"
    broken = tuple(
        f"job {row.id} ran {row.attempts} times" for row in installation.rows(batch.batch_id) if row.attempts > 1
    )
    return Outcome(
        accepted=[Accepted(batch.batch_id, batch.prompts), ended],
        faults=forged,
        broken=broken,
        note=f"{_rejected(port)} rejected",
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _rejected(port: int) -> int:
    """What the worker's metrics say: its log says it once a minute."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    (value,) = [line.split()[1] for line in lines if line.startswith("helix_worker_rejected_messages_total ")]
    return int(float(value))
