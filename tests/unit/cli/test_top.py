"""What runs now, on the whole terminal and for programs."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from helix_jobs.cli.interrupts import ended_by
from helix_jobs.cli.top_rows import TopRows, top_rows
from helix_jobs.client.client import HelixClient
from helix_jobs.client.worker_metrics import WorkerMetrics, parse_worker_metrics
from helix_jobs.errors import DatabaseUnreachableError
from helix_jobs.storage import claims, publishing, workers
from helix_jobs.storage.records import NewWorker
from helix_jobs.worker.metrics import MetricsServer
from tests.unit.worker.served_figures import QUEUE
from tests.unit.worker.served_figures import worker as figures

if TYPE_CHECKING:
    from collections.abc import Iterator

pytest.importorskip("textual")

WORKER = NewWorker(id="w2", hostname="host", pid=7, device="cpu", target_model="[bold]demo", draft_model=None, slots=4)


@pytest.fixture
def running(submitted, finish, database) -> str:
    """A batch of five: two answered, one failed, one runs on a worker."""
    batch = submitted(5)
    finish(batch, succeeded=2, failed=1)
    with database.write() as c:
        workers.register_worker(c, WORKER, datetime.now(UTC))
        claims.claim(c, publishing.publishable(c, 1)[0].id, worker_id="w2", now=datetime.now(UTC))
    return batch


@pytest.fixture
def metrics_port() -> Iterator[int]:
    server = MetricsServer("127.0.0.1", 0)
    server.show(lambda: figures(draft_tokens=8, accepted_tokens=6), lambda: QUEUE)
    yield server.port
    server.close()


def look(**metrics: WorkerMetrics) -> TopRows:
    with HelixClient() as client:
        return top_rows(client.snapshots()(), metrics)


def test_a_look_in_words(running):
    memory = {"process": 10**9, "device": 2 * 10**9, "device_total": 8 * 10**9}
    rows = look(w2=WorkerMetrics("w2", 3, 45.5, 0.75, memory))
    assert rows.summary.startswith("3 of 5 jobs ended, 1 in slots, 1 wait")
    assert ("w2", "cpu", "[bold]demo", "3/4", "46", "75 %", "2.00 GB of 8.00 GB") in rows.workers
    (batch,) = rows.batches
    assert batch[:5] == (running, "running", "3/5", "60 %", "1")


def test_without_metrics_the_database_knows_the_slots(running):
    assert ("w2", "cpu", "[bold]demo", "1/4", "-", "-", "-") in look().workers


def test_a_look_for_programs_needs_no_textual(helix, running, metrics_port, monkeypatch):
    monkeypatch.setitem(sys.modules, "textual", None)
    monkeypatch.delitem(sys.modules, "helix_jobs.cli.top_view", raising=False)
    value = json.loads(helix("top", "--json", "--metrics", metrics_port).stdout)
    assert (value["jobs"], value["ended"], value["running"], value["queued"]) == (5, 3, 1, 1)
    assert [batch["id"] for batch in value["batches"]] == [running]
    assert {"slots_used", "memory", "acceptance_rate", "alive"} <= value["workers"][0].keys()
    result = helix("top")
    assert result.exit_code == 2
    assert 'pip install -e ".[top]"' in result.stderr


def test_without_a_terminal_no_screen_is_drawn(helix, home):
    result = helix("top")
    assert result.exit_code == 2
    assert result.stderr == "Error: helix top needs a terminal; take helix top --json for one look, or helix status\n"


def test_a_place_of_metrics_that_is_none_is_refused(helix, home):
    assert "is not PORT or HOST:PORT" in helix("top", "--metrics", "localhost").stderr
    assert json.loads(helix("top", "--json", "--metrics", "127.0.0.1:9").stdout)["workers"] == []


def test_metrics_are_read_as_a_worker_serves_them(metrics_port):
    from helix_jobs.client.worker_metrics import read_worker_metrics

    found = read_worker_metrics("127.0.0.1", metrics_port)
    assert found == WorkerMetrics('w"1\n', 3, 45.5, 0.75, {"process": 1000})
    assert parse_worker_metrics("# HELP\nprocess_cpu 1\nhelix_worker_slots nonsense\n") is None


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no SIGTERM")
def test_a_signal_leaves_the_screen_as_its_key_does(running):
    from helix_jobs.cli.top_view import TopView

    async def drive() -> None:
        view = TopView(look, 0.01)
        with ended_by(view.end):
            async with view.run_test():
                os.kill(os.getpid(), signal.SIGTERM)
                for _ in range(3000):
                    if not view.is_running:
                        break
                    await asyncio.sleep(0.01)
        assert not view.is_running
        assert view.is_told

    asyncio.run(drive())


def test_the_screen_is_filled_kept_up_to_date_and_left_by_a_key(running, finish):
    from textual.widgets import DataTable, Static

    from helix_jobs.cli.top_view import TopView

    away = [False]

    async def drive() -> None:
        with HelixClient() as client:
            snapshots = client.snapshots()

            def read() -> TopRows:
                if away[0]:
                    raise DatabaseUnreachableError("the database at postgresql://me:hunter2@host does not answer")
                return top_rows(snapshots(), {})

            view = TopView(read, 0.01)
            async with view.run_test(size=(120, 30)) as pilot:
                await until(pilot, lambda: view.query_one("#batches", DataTable).row_count == 1)
                table = view.query_one("#batches", DataTable)
                assert [str(cell) for cell in table.get_row_at(0)][:3] == [running, "running", "3/5"]
                assert "[bold]demo" in [str(cell) for cell in view.query_one("#workers", DataTable).get_row_at(1)]
                finish(running, succeeded=1)
                await until(pilot, lambda: str(table.get_row_at(0)[2]) == "4/5")
                away[0] = True
                trouble = view.query_one("#trouble", Static)
                await until(pilot, lambda: "does not answer; trying again" in str(trouble.content))
                assert "hunter2" not in str(trouble.content)
                away[0] = False
                await until(pilot, lambda: not str(trouble.content))
                await pilot.press("q")
            assert not view.is_running

    async def until(pilot, condition) -> None:
        for _ in range(5000):
            if condition():
                return
            await pilot.pause(0.01)
        raise AssertionError("the screen does not show it")

    asyncio.run(drive())
