"""A real worker's metrics, scraped while it works, with and without its database."""

from __future__ import annotations

import socket
import sys
import urllib.request
from typing import TYPE_CHECKING

import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import make_url

from tests.worker_box import wait_until

if TYPE_CHECKING:
    from tests.worker_box import Box

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def scrape(port: int) -> dict[str, float]:
    """Name, or name and the values of its labels, -> value."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        return {" ".join((s.name, *s.labels.values())): s.value for family in families for s in family.samples}


def test_a_worker_serves_its_figures_and_the_queues(box: Box) -> None:
    port = free_port()
    worker = box.start_worker("--metrics-port", str(port), fake_hang="endless", fake_fail="apple")
    assert f"metrics   http://127.0.0.1:{port}/metrics" in worker.log
    batch = box.submit(*[f"w{i} a b c d" for i in range(30)], "bad apple")
    box.wait_states(batch, succeeded=30, failed=1)
    # Unlike one another: equal requests are computed once, and the others wait for that one.
    stuck = box.submit(*[f"endless story {number}" for number in range(9)])
    box.wait_states(stuck, running=6, queued=3)
    found = scrape(port)
    assert (
        found
        | {
            "helix_database_up": 1,
            "helix_workers": 1,
            "helix_jobs_queued": 3,
            "helix_jobs_running": 6,
            "helix_jobs_ended succeeded": 30,
            "helix_jobs_ended engine_error": 1,
            "helix_worker_slots": 4,
            "helix_worker_slots_used": 4,
            "helix_worker_jobs_ended_total succeeded": 30,
            "helix_worker_jobs_ended_total engine_error": 1,
            "helix_worker_fenced_total": 0,
            "helix_worker_published_total": found["helix_worker_published_total"],
            "helix_engine_completion_tokens_total": found["helix_engine_completion_tokens_total"],
        }
        == found
    )
    assert found["helix_engine_completion_tokens_total"] >= 30 * 5
    assert found["helix_engine_acceptance_ratio"] == 1.0
    assert 0 < found["helix_oldest_queued_job_age_seconds"] < 60
    assert found["helix_oldest_heartbeat_age_seconds"] < 20
    if sys.platform == "linux":
        assert found["process_open_fds"] > 0


def test_a_locked_database_does_not_hold_up_a_scrape(embedded_box: Box) -> None:
    box, port = embedded_box, free_port()
    box.start_worker("--metrics-port", str(port))
    database = box.database()
    with database.write():
        assert scrape(port)["helix_database_up"] == 1, "readers do not wait for writers"
    database.dispose()


@pytest.mark.postgres
@pytest.mark.redis
def test_a_database_that_goes_away_is_a_metric_until_it_is_back(services_box: Box, postgres_server_url: str) -> None:
    box, port = services_box, free_port()
    worker = box.start_worker("--metrics-port", str(port))
    assert scrape(port)["helix_database_up"] == 1
    name = make_url(box.settings.database_url).database
    with psycopg.connect(postgres_server_url, autocommit=True) as server:
        server.execute(f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS false")
        try:
            server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
            wait_until(lambda: scrape(port)["helix_database_up"] == 0, "the loss is not noticed")
            assert scrape(port)["helix_worker_slots"] == 4
        finally:
            server.execute(f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS true")
    wait_until(lambda: scrape(port)["helix_database_up"] == 1, "its return is not noticed")
    batch = box.submit("a b c")
    box.wait_states(batch, succeeded=1)
    assert worker.process.poll() is None


def test_a_port_in_use_ends_a_worker_before_its_models_are_loaded(embedded_box: Box) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        worker = embedded_box.start_worker(ready=False, metrics_port=str(port))
        assert worker.wait() == 2, worker.log
    assert f"metrics port {port} on 127.0.0.1 is in use" in worker.log
    assert "Traceback" not in worker.log
    assert embedded_box.worker_rows() == []
