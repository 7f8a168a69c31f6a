"""A worker rests: outside its hours, and while somebody else has the device."""

from __future__ import annotations

import json
import signal
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import psutil
import pytest

from helix_jobs.worker.device_lock import lock_directory
from helix_jobs.worker.yield_note import YieldNote, write_yield_note
from tests.worker_box import prompts, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.worker_box import Box

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")


def helix(box: Box, *arguments: str) -> str:
    done = box.run(sys.executable, "-m", "helix_jobs", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_worker_yields_its_device_and_takes_it_again(box: Box) -> None:
    """Jobs that run end, the rest waits; the process stays, and goes on."""
    batch = box.submit(*prompts(1000, words=24))  # it outlasts the start of a command, however slow
    worker = box.start_worker(fake_step_seconds="0.05", shutdown_grace="30")
    wait_until(lambda: box.states(batch).get("succeeded", 0) > 3, "nothing runs")
    assert "The device is free. Take it back with: " in helix(box, "yield")
    wait_until(lambda: "this worker rests: somebody else has the device (helix yield)" in worker.log, worker.log)
    states = box.states(batch)
    assert set(states) == {"succeeded", "queued"}, "something was left running"
    assert all(row.attempts == (row.state == "succeeded") for row in box.rows(batch))
    assert "No worker is running" in helix(box, "status")
    assert "The workers go on." in helix(box, "yield", "--end")
    wait_until(lambda: box.states(batch)["succeeded"] > states["succeeded"], "it does not go on")
    helix(box, "cancel", batch)
    wait_until(lambda: "running" not in box.states(batch), "jobs still run")
    assert box.result_count(batch) == box.states(batch)["succeeded"]
    assert worker.process.poll() is None
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0, worker.log
    assert "Traceback" not in worker.log
    assert "Nothing to end" in helix(box, "yield", "--end")


def test_who_needs_the_device_now_does_not_wait_for_jobs(embedded_box: Box) -> None:
    batch = embedded_box.submit(*["endless story"] * 5)
    worker = embedded_box.start_worker(fake_hang="endless", shutdown_grace="3600")
    embedded_box.wait_states(batch, running=5)
    found = json.loads(helix(embedded_box, "yield", "--now", "--for", "2h", "--json"))
    assert found["free"]
    until = datetime.fromisoformat(found["until"])
    assert timedelta(hours=1.9) < until - datetime.now(UTC) < timedelta(hours=2)
    for row in embedded_box.rows(batch):
        assert (row.state, row.attempts, row.worker_id) == ("queued", 0, None)
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0, "a resting worker ends at once"


def test_a_rest_ends_by_itself(embedded_box: Box) -> None:
    worker = embedded_box.start_worker()
    write_yield_note(
        lock_directory(embedded_box.settings.lock_dir), YieldNote(until=datetime.now(UTC) + timedelta(seconds=4))
    )
    wait_until(lambda: "this worker rests" in worker.log, lambda: f"it does not rest: {worker.log}")
    batch = embedded_box.submit(*prompts(5))
    embedded_box.wait_states(batch, succeeded=5)
    worker.send(signal.SIGINT)
    assert worker.wait() == 0, worker.log


def test_outside_its_hours_a_worker_waits_and_takes_nothing(embedded_box: Box) -> None:
    now = datetime.now(UTC)
    hours = f"{now + timedelta(hours=2):%H:%M}-{now + timedelta(hours=3):%H:%M} UTC"  # not for two hours
    batch = embedded_box.submit(*prompts(5))
    worker = embedded_box.start_worker(ready=False, hours=hours)
    wait_until(lambda: "outside its hours (HELIX_HOURS), until " in worker.log, lambda: worker.log)
    assert "Ready." not in worker.log
    assert embedded_box.states(batch) == {"queued": 5}
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0, worker.log


def test_hours_that_are_none_are_refused_by_name(embedded_box: Box) -> None:
    done = embedded_box.run(sys.executable, "-m", "helix_jobs", "worker", "--hours", "22-7")
    assert done.returncode == 2
    assert "'22-7'; give hours such as 22:00-07:00" in done.stderr


@pytest.mark.demo
def test_a_resting_worker_holds_no_models(embedded_box: Box, demo_home: Path) -> None:
    """What stays are the libraries."""
    box = embedded_box
    (box.settings.make_home() / "models").symlink_to(demo_home / "models")
    worker = box.start_worker(
        fresh=True, engine="helix", device="cpu", dtype="float32", compile="off", draft_model="none"
    )

    def resident() -> int:
        return psutil.Process(worker.process.pid).memory_info().rss

    loaded = resident()
    helix(box, "yield")
    wait_until(lambda: "this worker rests" in worker.log, lambda: worker.log)
    # The weights of 135 million parameters in four bytes each.
    wait_until(lambda: loaded - resident() > 400_000_000, lambda: f"{loaded:,} bytes, now {resident():,}")
    helix(box, "yield", "--end")
    wait_until(lambda: worker.log.count("Ready.") == 2, lambda: worker.log)
    box.wait_states(box.submit(*prompts(2)), succeeded=2)
