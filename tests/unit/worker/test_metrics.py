"""What is served, in Prometheus' own form, whatever the database does."""

from __future__ import annotations

import math
import re
import socket
import threading
import urllib.error
import urllib.request
from datetime import UTC, datetime

import pytest
from prometheus_client.parser import text_string_to_metric_families

from helix_jobs.errors import ConfigurationError, DatabaseUnreachableError
from helix_jobs.worker import metrics
from helix_jobs.worker.metrics import METRICS, Kind, MetricsServer
from tests.unit.worker.served_figures import NOW, QUEUE, worker


@pytest.fixture
def server():
    made = MetricsServer("127.0.0.1", 0)
    yield made
    made.close()


def scrape(server) -> dict[str, dict[tuple[str, ...], float]]:
    """Sample name -> label values -> value, read by Prometheus' own parser; process_* left out."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=20) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain")
        text = answer.read().decode()
    return {
        sample.name: {tuple(other.labels.values()): other.value for other in family.samples}
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if family.name.startswith("helix_")
    }


def test_every_metric_is_served_under_its_name(server):
    counters = {"draft_tokens": 8, "accepted_tokens": 6, "completion_tokens": 100, "target_seconds": 2.5}
    server.show(lambda: worker(**counters, forced_tokens=3, accepted_forced_tokens=2), lambda: QUEUE)
    found = scrape(server)
    assert set(found) == {metric.name for metric in METRICS}
    alone = {name: values[()] for name, values in found.items() if () in values}
    assert (
        alone
        | {
            "helix_database_up": 1,
            "helix_jobs_queued": 12,
            "helix_jobs_running": 3,
            "helix_oldest_running_job_age_seconds": 0,
            "helix_oldest_heartbeat_age_seconds": 0,
            "helix_worker_slots": 8,
            "helix_worker_slots_used": 3,
            "helix_worker_stored_answers_total": 28,
            "helix_worker_messages_total": 9,
            "helix_worker_void_messages_total": 3,
            "helix_worker_rejected_messages_total": 2,
            "helix_worker_fenced_total": 1,
            "helix_worker_reclaimed_total": 6,
            "helix_worker_published_total": 10,
            "helix_worker_republished_total": 4,
            "helix_worker_reconnections_total": 1,
            "helix_engine_completion_tokens_total": 100,
            "helix_engine_forced_tokens_total": 3,
            "helix_engine_accepted_forced_tokens_total": 2,
            "helix_engine_acceptance_ratio": 0.75,
            "helix_engine_tokens_per_second": 45.5,
            "helix_engine_idle_seconds_total": 1.5,
        }
        == alone
    )
    assert 600 <= alone["helix_oldest_queued_job_age_seconds"] <= (datetime.now(UTC) - NOW).total_seconds() + 600
    assert found["helix_jobs_ended"][("deadline",)] == 2
    assert found["helix_worker_jobs_ended_total"] == {("succeeded",): 5}
    assert found["helix_engine_phase_seconds_total"][("target",)] == 2.5
    (labels,) = found["helix_worker_info"]
    assert {'w"1\n', "none", "fake-target"} <= set(labels)


def test_before_anything_was_drafted_there_is_no_acceptance(server):
    server.show(worker, lambda: QUEUE)
    assert math.isnan(scrape(server)["helix_engine_acceptance_ratio"][()])


def test_while_models_load_the_process_alone_is_served(server):
    assert scrape(server) == {}


@pytest.mark.parametrize("error", [DatabaseUnreachableError("away"), ZeroDivisionError("a bug")], ids=repr)
def test_a_failing_database_is_a_metric(server, error):
    def fail():
        raise error

    server.show(worker, fail)
    found = scrape(server)
    assert found["helix_database_up"] == {(): 0}
    assert "helix_jobs_queued" not in found, "a figure nobody knows must not be served"
    assert found["helix_worker_messages_total"] == {(): 9}


def test_a_hanging_database_is_a_metric_and_asked_once(server, monkeypatch):
    monkeypatch.setattr(metrics, "DATABASE_SECONDS", 0.2)
    release, calls = threading.Event(), []

    def hang():
        calls.append(1)
        release.wait(30)
        return QUEUE

    server.show(worker, hang)
    for _ in range(3):
        assert scrape(server)["helix_database_up"] == {(): 0}
    assert len(calls) == 1, "a thread each would pile up"
    release.set()
    found = {}
    for _ in range(50):
        found = scrape(server)
        if found["helix_database_up"] == {(): 1}:
            break
    assert found["helix_jobs_queued"] == {(): 12}


def test_many_scrapes_are_one_question_to_the_database(server, monkeypatch):
    monkeypatch.setattr(metrics, "FRESH_SECONDS", 60.0)
    calls = []

    def read():
        calls.append(1)
        return QUEUE

    server.show(worker, read)
    for _ in range(3):
        assert scrape(server)["helix_jobs_queued"] == {(): 12}
    assert len(calls) == 1


def test_a_port_in_use_is_said_with_the_remedy(server):
    with pytest.raises(ConfigurationError, match=rf"metrics port {server.port} on 127.0.0.1 is in use.*--metrics-port"):
        MetricsServer("127.0.0.1", server.port)


def test_an_address_that_is_none_is_said_with_the_remedy():
    with pytest.raises(ConfigurationError, match="HELIX_METRICS_HOST"):
        MetricsServer("no-such-host.invalid", 0)


def test_the_port_is_free_afterwards():
    server = MetricsServer("127.0.0.1", 0)
    server.close()
    with socket.create_server(("127.0.0.1", server.port)):
        pass
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=5)


def test_names_follow_prometheus_conventions():
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        assert re.fullmatch(r"helix_[a-z]+(_[a-z]+)*", metric.name)
        assert metric.name.endswith("_total") == (metric.kind is Kind.COUNTER), metric.name
        assert metric.meaning.endswith("."), metric.name
        assert not re.search(r"_(ms|milliseconds|minutes|percent|kb|mb)(_|$)", metric.name), "base units only"


def test_a_machine_without_threads_is_asked_again_when_it_has_some(monkeypatch: pytest.MonkeyPatch) -> None:
    limited = metrics._Limited(lambda: 7, 5.0)

    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError):
            limited()
    assert limited() == 7
