"""Installations that share one Redis, with each other, with an older Helix and with other programs."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from redis import Redis
from redis.exceptions import NoPermissionError

from helix_jobs.broker.older_keys import find_older_keys
from helix_jobs.broker.publisher import CeleryPublisher
from helix_jobs.doctor.broker import check_broker
from helix_jobs.errors import BrokerUnreachableError, ConfigurationError
from helix_jobs.storage.migration import downgrade, upgrade
from helix_jobs.storage.publishing import mark_published
from helix_jobs.storage.records import PublishableJob
from tests.store_helpers import now
from tests.worker_box import Box, make_box, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from helix_jobs.doctor.verdict import Verdict
    from tests.worker_box import StartForked

pytestmark = [
    pytest.mark.redis,
    pytest.mark.skipif(sys.platform == "win32", reason="no embedded server on Windows"),
]


@pytest.fixture
def boxes(short_tmp: Path, empty_redis: str, start_forked: StartForked) -> Iterator[list[Box]]:
    """Two installations on one Redis."""
    made = []
    for name in ("a", "b"):
        place = short_tmp / name
        place.mkdir()
        made.append(
            make_box(place / "home", place, redis_url=empty_redis, database_url=None, start_forked=start_forked)
        )
    yield made
    for box in made:
        box.close()


@pytest.fixture
def redis(empty_redis: str) -> Iterator[Redis]:
    with Redis(unix_socket_path=empty_redis.removeprefix("redis+socket://")) as client:
        yield client


@pytest.mark.thorough
def test_two_installations_do_not_take_each_others_ids(boxes: list[Box], redis: Redis) -> None:
    workers = [box.start_worker() for box in boxes]
    batches = [box.submit(*[f"job {n}" for n in range(40)]) for box in boxes]
    for box, batch in zip(boxes, batches, strict=True):
        box.wait_states(batch, succeeded=40)
    assert boxes[0].names != boxes[1].names
    for worker, box in zip(workers, boxes, strict=True):
        answers = box.run(sys.executable, "-m", "celery", "-A", "helix_jobs.broker.celery.app", "inspect", "ping")
        assert answers.stdout.count("pong") == 1, answers.stdout + answers.stderr
        worker.send(signal.SIGTERM)
        assert worker.wait() == 0, worker.log
    left = {key for key in redis.keys("*") if b"_kombu." not in key}
    assert not left, "an orderly end leaves no message"


@pytest.mark.parametrize("kind", ["string", "hash", "list"])
def test_another_programs_keys_are_left_alone(boxes: list[Box], redis: Redis, kind: str) -> None:
    put = {
        "string": lambda key: redis.set(key, "theirs"),
        "hash": lambda key: redis.hset(key, "field", "theirs"),
        "list": lambda key: redis.rpush(key, *["theirs"] * 50),
    }[kind]
    for key in ("helix", "helix.unacked", "helix.unacked_index"):
        put(key)
    before = {key: redis.dump(key) for key in redis.keys("helix*")}
    box = boxes[0]
    box.start_worker()
    box.wait_states(box.submit("one", "two"), succeeded=2)
    assert {key: redis.dump(key) for key in before} == before


def test_a_key_that_cannot_be_the_queue_is_refused_and_kept(boxes: list[Box], redis: Redis) -> None:
    box = boxes[0]
    box.submit("one")
    key = box.names.lists[9]
    redis.delete(key)
    redis.set(key, "theirs")
    worker = box.start_worker(ready=False)
    assert worker.wait() == 2, worker.log
    assert f"holds a string under the key {key!r}, where Helix's queue needs a list; rename that key" in worker.log
    assert redis.get(key) == b"theirs"
    with pytest.raises(ConfigurationError, match="needs a list"):
        box.publisher().check_keys()
    with pytest.raises(BrokerUnreachableError, match="refuses"):
        box.publisher().publish([PublishableJob(1, 0)])


def test_jobs_queued_by_the_version_without_ids_run_after_the_upgrade(boxes: list[Box], redis: Redis) -> None:
    box = boxes[0]
    batch = box.submit(*[f"job {n}" for n in range(30)])
    # As that version left it: no id in the database, and every message in the queue called helix.
    current = box.publisher()
    current.reset_queue()
    current.close()
    ids = [row.id for row in box.rows(batch)]
    database = box.database()
    downgrade(database, "0003")
    old = CeleryPublisher(box.settings.redis_url or "", OldNames())
    old.publish([PublishableJob(job_id, 0) for job_id in ids])
    old.close()
    with database.write() as c:
        assert mark_published(c, ids, now()) == 30
    waiting = redis.llen("helix\x06\x169")
    assert waiting == 30

    upgrade(database)
    database.dispose()
    box.start_worker()
    box.wait_states(batch, succeeded=30)
    wait_until(lambda: box.publisher().depth() == 0, "messages stay in the queue")
    assert {row.attempts for row in box.rows(batch)} == {1}
    assert redis.llen("helix\x06\x169") == waiting, "whose they are nobody can tell: left alone"


def test_doctor_lists_what_a_version_without_ids_left_with_the_command_that_removes_it(
    boxes: list[Box], redis: Redis
) -> None:
    box = boxes[0]
    box.submit("one")
    redis.rpush("helix\x06\x163", "theirs")
    redis.hset("helix.unacked", "tag", "theirs")
    assert "broker, old keys" not in told(box)
    old = CeleryPublisher(box.settings.redis_url or "", OldNames())
    old.publish([PublishableJob(job_id, 0) for job_id in range(1, 31)])
    old.close()
    redis.delete("helix.unacked")
    redis.hset("helix.unacked", "tag", json.dumps([{"headers": {"task": "helix.run_job"}}, "", "helix"]))
    redis.zadd("helix.unacked_index", {"tag": 1.0})
    found = told(box)["broker, old keys"]
    assert "helix\\x06\\x169 (30 ids, " in found.finding
    assert "helix.unacked (1 ids, " in found.finding
    assert "x163" not in found.finding
    if shutil.which("redis-cli"):
        command = found.remedy.partition("any more: ")[2]
        assert subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=True).stdout == "3\n"
        assert {key for key in redis.keys("helix*") if not key.startswith(box.names.queue.encode())} == {
            b"helix\x06\x163"
        }
        assert "broker, old keys" not in told(box)


def test_doctor_says_nothing_of_keys_that_it_may_not_look_at() -> None:
    class Refusing:
        def type(self, _key: str) -> bytes:
            raise NoPermissionError("this user has no permissions to access one of the keys")

    assert find_older_keys(Refusing()) == ()


def test_celerys_own_commands_say_what_is_wrong_in_a_sentence(boxes: list[Box]) -> None:
    box = boxes[0]
    box.settings = replace(box.settings, database_url="postgresql://127.0.0.1:1/helix")
    asked = box.run(sys.executable, "-m", "celery", "-A", "helix_jobs.broker.celery.app", "inspect", "ping")
    assert asked.returncode == 1
    assert asked.stderr.startswith("Error: database postgresql")
    assert "Traceback" not in asked.stderr


class OldNames:
    """The names of every installation before ids."""

    queue = "helix"
    unacked, unacked_index, unacked_mutex = "helix.unacked", "helix.unacked_index", "helix.unacked_mutex"


def told(box: Box) -> dict[str, Verdict]:
    """What doctor says of the broker."""
    return {verdict.subject: verdict for verdict in check_broker(box.settings)}
