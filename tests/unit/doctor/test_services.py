"""What doctor says of clocks, the broker and the metrics port; real services, as they are."""

from __future__ import annotations

import dataclasses
import shutil
import socket
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from helix_jobs.broker.embedded import EmbeddedBroker
from helix_jobs.doctor.broker import check_broker, judge_state
from helix_jobs.doctor.broker_state import BrokerState, QueueNames, read_broker_state
from helix_jobs.doctor.clock import judge_skew
from helix_jobs.doctor.metrics_port import check_metrics
from helix_jobs.worker.metrics import MetricsServer
from tests.redis_client import redis_client
from tests.unit.doctor.verdicts import FAILED, OK, WARNING, levels, only
from tests.unit.worker.served_figures import QUEUE, worker
from tests.worker_box import wait_until

# clock


@pytest.mark.parametrize(("seconds", "words"), [(3600.0, "3,600 s ahead of"), (-61.0, "61 s behind")])
def test_clocks_that_disagree_are_a_warning(seconds, words):
    found = judge_skew("broker", seconds)
    assert (found.subject, found.level) == ("clock, broker", WARNING)
    assert words in found.finding
    assert "NTP" in found.remedy


def test_clocks_that_agree():
    assert judge_skew("broker", -1.5).level is OK


# broker


@pytest.fixture
def short_home():
    """A directory with a path short enough for sockets."""
    path = Path(tempfile.mkdtemp(prefix="hx-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


def test_an_embedded_broker_is_looked_at_and_not_started(settings, short_home):
    settings = dataclasses.replace(settings, home=short_home)
    if sys.platform == "win32":
        assert check_broker(settings)[0].level is WARNING
        return
    (found,) = check_broker(settings)
    assert (found.level, "not running" in found.finding) == (OK, True)
    broker = EmbeddedBroker(short_home)
    broker.start()
    try:
        verdicts = check_broker(settings)
        assert set(levels(verdicts).values()) == {OK}
        assert only(verdicts, "broker").finding.startswith("embedded Valkey ")
        assert "noeviction" in only(verdicts, "broker, memory").finding
        assert "clock, broker" in levels(verdicts)
    finally:
        broker.stop()


def test_a_broker_that_is_not_there(settings):
    (found,) = check_broker(dataclasses.replace(settings, redis_url="redis://:hidden@127.0.0.1:1/0"))
    assert found.level is FAILED
    assert found.finding.startswith("the broker at redis://:***@127.0.0.1:1/0 does not answer")
    assert "HELIX_REDIS_URL" in found.remedy


def test_a_url_that_is_none(settings):
    (found,) = check_broker(dataclasses.replace(settings, redis_url="amqp-ish://x"))
    assert found.level is FAILED


SOUND = BrokerState(
    server="Redis 8.0.1",
    queue="helix.one",
    messages=5,
    unacked=2,
    used_memory=10 << 20,
    maxmemory=0,
    policy="noeviction",
    appends=True,
    is_saving=True,
    skew_seconds=0.1,
)


@pytest.mark.parametrize(
    ("change", "subject", "level", "words"),
    [
        ({}, "broker", OK, "Redis 8.0.1 at redis://h, queue helix.one: 5 ids waiting, 2 in workers' hands"),
        ({"queue": None}, "broker", OK, "Redis 8.0.1 at redis://h"),
        ({"policy": "allkeys-lru"}, "broker, memory", WARNING, "maxmemory-policy allkeys-lru"),
        ({"maxmemory": 10_000_000}, "broker, memory", WARNING, "used of 10 MB"),
        ({"maxmemory": 1_000_000_000}, "broker, memory", OK, "used of 1.0 GB"),
        ({"appends": False}, "broker, persistence", OK, "sent again from the database"),
        ({"is_saving": False}, "broker, persistence", WARNING, "failed"),
        ({"skew_seconds": -600.0}, "clock, broker", WARNING, "600 s behind"),
    ],
)
def test_what_a_broker_says_about_itself(change, subject, level, words):
    found = only(judge_state(dataclasses.replace(SOUND, **change), "redis://h", embedded=False), subject)
    assert found.level is level
    assert words in found.finding


@pytest.mark.redis
@pytest.mark.skipif(sys.platform == "win32", reason="no embedded server on Windows")
def test_a_servers_settings_are_read(short_home):
    broker = EmbeddedBroker(short_home)
    broker.start()
    try:
        with redis_client(broker.url) as client:
            client.config_set("maxmemory-policy", "volatile-lru")
            client.config_set("maxmemory", 50 << 20)
            client.config_set("appendonly", "yes")
            state = read_broker_state(broker.url, QueueNames("one"))
            # Until then it refuses to end.
            wait_until(lambda: not client.info("persistence")["aof_rewrite_in_progress"], "its file is not written")
    finally:
        broker.stop()
    assert (state.policy, state.maxmemory, state.appends, state.messages) == ("volatile-lru", 50 << 20, True, 0)
    assert 0 < state.used_memory < 50 << 20
    assert abs(state.skew_seconds) < 5


# metrics port


def test_the_metrics_port(settings, monkeypatch):
    monkeypatch.setattr("helix_jobs.doctor.metrics_port._ANSWER_SECONDS", 0.1)
    assert only(check_metrics(settings), "metrics port").finding.startswith("off")
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = dataclasses.replace(settings, metrics_port=other.getsockname()[1])
        found = only(check_metrics(taken), "metrics port")
        assert (found.level, "cannot be used" in found.finding) == (FAILED, True)
    assert only(check_metrics(taken), "metrics port").finding.endswith("free for a worker")
    nowhere = dataclasses.replace(taken, metrics_host="no such host")
    assert only(check_metrics(nowhere), "metrics port").level is FAILED


def test_the_metrics_port_of_a_program_that_speaks_no_http(settings):
    with socket.create_server(("127.0.0.1", 0)) as other, ThreadPoolExecutor(1) as pool:

        def greet():
            caller, _ = other.accept()
            with caller:
                caller.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
                caller.recv(65_536)

        greeted = pool.submit(greet)
        taken = dataclasses.replace(settings, metrics_port=other.getsockname()[1])
        found = only(check_metrics(taken), "metrics port")
        greeted.result()
    assert (found.level, "cannot be used" in found.finding) == (FAILED, True)


def test_the_metrics_port_of_a_worker(settings):
    server = MetricsServer("127.0.0.1", 0)
    try:
        server.show(worker, lambda: QUEUE)
        found = only(check_metrics(dataclasses.replace(settings, metrics_port=server.port)), "metrics port")
        assert (found.level, "served by a worker" in found.finding) == (OK, True)
    finally:
        server.close()
