"""A broker that answers "no": the worker stays, running jobs end, and the rest runs when it is mended."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING

import pytest
from redis import Redis

from helix_jobs.broker.embedded import EmbeddedBroker
from helix_jobs.broker.publisher import ProbingPublisher
from helix_jobs.doctor.broker import check_broker
from helix_jobs.doctor.verdict import Level
from helix_jobs.errors import HelixError
from tests.integration.quick_worker import start_quick_worker
from tests.worker_box import make_box, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.worker_box import Box

pytestmark = [
    pytest.mark.redis,
    pytest.mark.skipif(sys.platform == "win32", reason="no embedded server on Windows"),
]

WAITING = 30


@pytest.fixture
def admin(short_tmp: Path) -> Iterator[Redis]:
    """The owner's connection to a server of this test's own."""
    home = short_tmp / "server"
    home.mkdir()
    server = EmbeddedBroker(home)
    server.start()
    with Redis(unix_socket_path=str(server.socket_path)) as client:
        client.execute_command("ACL", "SETUSER", "helix", "on", ">pw", "~*", "&*", "+@all")
        yield client
        client.config_set("maxmemory", 0)
    assert server.stop()


@pytest.fixture
def box(admin: Redis, short_tmp: Path) -> Iterator[Box]:
    socket = admin.connection_pool.connection_kwargs["path"]
    made = make_box(short_tmp / "home", short_tmp, redis_url=f"redis+socket://helix:pw@{socket}", database_url=None)
    yield made
    made.close()


REFUSALS = {
    "readonly": (lambda _, a: a.replicaof("127.0.0.1", 1), lambda _, a: a.replicaof("NO", "ONE"), "read only replica"),
    "noperm": (
        lambda _, a: a.execute_command("ACL", "SETUSER", "helix", "-brpop"),
        lambda _, a: a.execute_command("ACL", "SETUSER", "helix", "+brpop"),
        "permissions",
    ),
    "out of memory": (
        lambda _, a: a.config_set("maxmemory", 1),
        lambda _, a: a.config_set("maxmemory", 0),
        "maxmemory",
    ),
    "wrong type": (
        lambda box, a: (a.delete(box.names.unacked), a.set(box.names.unacked, "theirs")),
        lambda box, a: a.delete(box.names.unacked),
        "where Helix's queue needs a hash",
    ),
}


@pytest.mark.thorough
@pytest.mark.parametrize("kind", REFUSALS)
def test_a_refusal_is_waited_for(box: Box, admin: Redis, kind: str) -> None:
    break_it, mend_it, words = REFUSALS[kind]
    worker = start_quick_worker(box, 30.0, HELIX_FAKE_STEP_SECONDS="0.15")
    batch = box.submit(*[f"job {n} of several words" for n in range(WAITING)])
    wait_until(lambda: box.states(batch).get("running", 0) >= 4, "nothing runs")
    break_it(box, admin)
    wait_until(lambda: "the broker refuses: " in worker.log, lambda: f"it does not notice: {worker.log}")
    wait_until(lambda: "running" not in box.states(batch), "running jobs do not end")
    left = box.states(batch)
    assert left["succeeded"] >= 4, "they are committed"
    assert left.keys() == {"succeeded", "queued"}
    with pytest.raises(HelixError):
        ProbingPublisher(box.settings.redis_url or "", box.names).depth()
    (verdict,) = check_broker(box.settings)
    assert verdict.level is Level.FAILED
    assert words in verdict.finding
    assert worker.process.poll() is None, worker.log
    mend_it(box, admin)
    wait_until(lambda: box.states(batch) == {"succeeded": WAITING}, lambda: f"{box.states(batch)}\n{worker.log}")
    assert box.result_count(batch) == WAITING
    assert worker.log.count("the broker refuses: ") == 1, worker.log
    assert "Traceback" not in worker.log
    assert "cannot go on" not in worker.log
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0


def test_a_broker_that_refuses_at_the_start_is_told_before_models_are_loaded(box: Box, admin: Redis) -> None:
    admin.replicaof("127.0.0.1", 1)
    worker = box.start_worker(ready=False)
    assert worker.wait() == 3
    assert "refuses: " in worker.log
    assert "read only replica" in worker.log
    admin.replicaof("NO", "ONE")
