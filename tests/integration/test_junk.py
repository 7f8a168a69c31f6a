"""Messages and broadcasts that are none of Helix's: dropped, in blocks, and the worker lives."""

from __future__ import annotations

import re
import signal
import sys
from typing import TYPE_CHECKING

import pytest
from redis import Redis
from sqlalchemy import update

from helix_jobs.broker.junk_sweep import BLOCK_MESSAGES, MAX_MESSAGE_BYTES, sweep
from helix_jobs.storage.records import PublishableJob
from helix_jobs.storage.schema import jobs
from helix_jobs.worker.audit import read_known_ids
from helix_jobs.worker.moot_messages import MANY, MootMessages
from tests.worker_box import Box, make_box, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tests.worker_box import StartForked

pytestmark = [
    pytest.mark.redis,
    pytest.mark.skipif(sys.platform == "win32", reason="no embedded server on Windows"),
]

JUNK = 20_000
NO_BASE64 = (
    b'{"body": "!!!", "content-type": "application/json", "content-encoding": "utf-8", "headers": {}, "properties": '
    b'{"body_encoding": "base64", "delivery_tag": "t", "delivery_info": {"exchange": "", "routing_key": ""}}}'
)


@pytest.fixture
def client(empty_redis: str) -> Iterator[Redis]:
    with Redis(unix_socket_path=empty_redis.removeprefix("redis+socket://")) as opened:
        yield opened


@pytest.fixture
def box(short_tmp: Path, empty_redis: str, start_forked: StartForked) -> Iterator[Box]:
    made = make_box(short_tmp / "home", short_tmp, redis_url=empty_redis, database_url=None, start_forked=start_forked)
    yield made
    made.close()


def are_ours(texts: Sequence[bytes]) -> Iterator[bool]:
    return (text.startswith(b"ours") for text in texts)


def test_the_junk_in_front_is_dropped_and_nothing_else(client: Redis) -> None:
    client.rpush("list", "junk behind", "ours 2", "ours 1", "junk 3", "junk 2", "x" * (MAX_MESSAGE_BYTES + 1), "junk 1")
    assert sweep(client, ["list", "no such list"], are_ours) == 4
    assert client.lrange("list", 0, -1) == [b"junk behind", b"ours 2", b"ours 1"]
    assert sweep(client, ["list"], are_ours) == 0


def test_a_block_at_a_time(client: Redis) -> None:
    client.rpush("list", *["junk"] * (BLOCK_MESSAGES + 7))
    assert [sweep(client, ["list"], are_ours) for _ in range(3)] == [BLOCK_MESSAGES, 7, 0]


def test_what_came_meanwhile_is_not_dropped(client: Redis) -> None:
    client.rpush("list", "junk 2", "junk 1")

    def look(texts: Sequence[bytes]) -> list[bool]:
        client.rpop("list")  # another worker takes one, and somebody puts one back
        client.rpush("list", "ours")
        return [False] * len(texts)

    assert sweep(client, ["list"], look) == 0
    assert client.lrange("list", 0, -1) == [b"junk 2", b"ours"]


def test_what_was_popped_meanwhile_keeps_nothing_behind_it(client: Redis) -> None:
    """The worker goes on taking messages while the block is looked up."""
    client.rpush("list", "ours", "junk 4", "junk 3", "junk 2", "junk 1")

    def look(texts: Sequence[bytes]) -> Iterator[bool]:
        client.rpop("list", 2)
        return are_ours(texts)

    assert sweep(client, ["list"], look) == 2
    assert client.lrange("list", 0, -1) == [b"ours"]


def test_a_flood_is_dropped_in_blocks_and_said_in_a_few_lines(box: Box, client: Redis) -> None:
    worker = box.start_worker()
    worker.send(signal.SIGSTOP)
    client.lpush(box.names.queue, *(b'{"no": "message %d"}' % number for number in range(JUNK)))
    batch = box.submit(*[f"job {n}" for n in range(10)], priority=9)  # behind it, in the same list
    client.config_resetstat()
    worker.send(signal.SIGCONT)
    box.wait_states(batch, succeeded=10)
    assert client.info("commandstats")["cmdstat_brpop"]["calls"] < JUNK / 10, "it was popped one by one"
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0
    said = re.findall(r"dropped ([\d,]+) messages? that no worker takes from the broker", worker.log)
    assert sum(int(count.replace(",", "")) for count in said) == JUNK
    assert len(said) < 5
    assert "Traceback" not in worker.log


def test_messages_of_jobs_that_do_not_wait_are_dropped_in_blocks(box: Box, client: Redis) -> None:
    """Forged ids, and duplicates of jobs that have ended; what waits behind them is kept."""
    ended, waiting = box.submit("one"), box.submit("two", "three")
    database, publisher = box.database(), box.publisher()
    with database.write() as c:
        c.execute(update(jobs).where(jobs.c.batch_id == ended).values(state="succeeded"))
    ids = [row.id for row in box.rows(waiting)]
    client.flushall()
    publisher.publish([PublishableJob(10**6 + n, 5) for n in range(3 * BLOCK_MESSAGES)])
    publisher.publish([PublishableJob(box.rows(ended)[0].id, 5), PublishableJob(ids[0], 5), PublishableJob(10**7, 5)])
    publisher.publish([PublishableJob(10**8, 9), PublishableJob(ids[1], 9)])
    void = iter([0, MANY - 1, 2 * MANY, 3 * MANY + 1])
    moot = MootMessages(database, publisher, lambda: next(void))
    assert [moot.look() for _ in range(2)] == [0, 0], "a few are no reason to look"
    assert moot.look() == 3 * BLOCK_MESSAGES + 2
    assert publisher.depth() == 3
    assert moot.look() == 0
    assert read_known_ids(publisher) == {*ids, 10**7}
    moot.close()
    database.dispose()


@pytest.mark.thorough
def test_forged_ids_do_not_hold_up_the_jobs_behind(box: Box, client: Redis) -> None:
    worker = box.start_worker()
    worker.send(signal.SIGSTOP)
    publisher = box.publisher()
    publisher.publish([PublishableJob(10**6 + n, 5) for n in range(JUNK)])
    publisher.close()
    batch = box.submit(*[f"job {n}" for n in range(10)])
    client.config_resetstat()
    worker.send(signal.SIGCONT)
    box.wait_states(batch, succeeded=10)
    assert client.info("commandstats")["cmdstat_brpop"]["calls"] < JUNK, "they were popped one by one"
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0
    assert "of jobs that do not wait, are paused, or do not exist" in worker.log
    assert "Traceback" not in worker.log


@pytest.mark.thorough
def test_broadcasts_that_are_no_commands_do_not_end_the_loop(box: Box, client: Redis) -> None:
    worker = box.start_worker()
    wait_until(client.pubsub_numpat, "the worker does not listen")
    topic = f"/0.{box.names.queue}.pidbox"
    heard = [
        client.publish(topic, junk)
        for junk in (
            *(b"\x80\x04no json", b"[]", b"5", b"null", b"[" * 100_000, b"{}", b""),
            NO_BASE64,
        )
        * 2
    ]
    assert heard == [1] * 16, "the worker listens"
    batch = box.submit("one", "two")
    box.wait_states(batch, succeeded=2)
    celery = (sys.executable, "-m", "celery", "-A", "helix_jobs.broker.celery.app")
    refused = box.run(*celery, "control", "rate_limit", "helix.run_job", "1/h")
    assert "does not take rate_limit" in refused.stdout + refused.stderr
    refused = box.run(*celery, "control", "add_consumer", "evil")
    assert "one queue" in refused.stdout + refused.stderr
    assert "pong" in box.run(*celery, "inspect", "ping").stdout
    batch = box.submit("three")
    box.wait_states(batch, succeeded=1)
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0
    counted = re.findall(r"([\d,]+) broadcasts that are no command", worker.log)
    assert sum(int(count) for count in counted) == 16, worker.log
    assert "Traceback" not in worker.log
    assert "ended unexpectedly" not in worker.log
