"""A worker rests: outside its hours, while somebody else has the device, and while it is paused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from helix_jobs.time_limits import DEFAULT_TIME_LIMITS
from helix_jobs.worker import others, workplace
from helix_jobs.worker.device_lock import is_held, lock_directory
from helix_jobs.worker.rest_note import RestNote, Wish, remove_rest_note, write_rest_note
from helix_jobs.worker.shifts import work_in_shifts
from helix_jobs.worker.stop_requests import StopRequests
from tests.worker_box import prompts, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from helix_jobs.engine.protocol import EngineProtocol
    from tests.worker_box import Box

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")


def helix(box: Box, *arguments: str) -> str:
    done = box.run(sys.executable, "-m", "helix_jobs", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.thorough
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
    assert "This machine's workers leave every device to somebody else. End it with: " in helix(box, "status")
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


@pytest.mark.thorough
def test_a_rest_ends_by_itself(embedded_box: Box) -> None:
    worker = embedded_box.start_worker()
    write_rest_note(
        lock_directory(embedded_box.settings.lock_dir),
        Wish.YIELD,
        RestNote(until=datetime.now(UTC) + timedelta(seconds=4)),
    )
    wait_until(lambda: "this worker rests" in worker.log, lambda: f"it does not rest: {worker.log}")
    batch = embedded_box.submit(*prompts(5))
    embedded_box.wait_states(batch, succeeded=5)
    worker.send(signal.SIGINT)
    assert worker.wait() == 0, worker.log


def test_a_worker_yields_by_itself_to_a_program_and_comes_back(
    embedded_box: Box, tmp_path: Path, short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / f"hx{os.getpid()}game"
    program.symlink_to(shutil.which("sleep") or "sleep")
    for name, seconds in (("COME_SECONDS", 0.0), ("GONE_SECONDS", 0.0), ("LOOK_SECONDS", 0.2)):
        monkeypatch.setattr(others, name, seconds)
    monkeypatch.setattr("tempfile.tempdir", str(short_tmp))
    monkeypatch.setenv("HELIX_FAKE_STEP_SECONDS", "0.05")
    settings = replace(embedded_box.settings, yield_when=f"process:{program.name.upper()}", shutdown_grace=30.0)
    batch = embedded_box.submit(*prompts(300, words=24))
    lines: list[str] = []
    requests = StopRequests()
    arguments = {"time_limits": DEFAULT_TIME_LIMITS, "on_progress": lines.append, "stop": requests}
    thread = threading.Thread(target=work_in_shifts, args=(settings,), kwargs={**arguments, "handle_signals": False})
    thread.start()
    try:
        wait_until(lambda: embedded_box.states(batch).get("succeeded", 0) > 3, "nothing runs")
        with subprocess.Popen([program, "3600"]) as game:
            try:
                wait_until(lambda: any("runs (HELIX_YIELD_WHEN)" in line for line in lines), lambda: str(lines))
                states = embedded_box.states(batch)
                assert set(states) == {"succeeded", "queued"}
                assert all(row.attempts == (row.state == "succeeded") for row in embedded_box.rows(batch))
                assert not is_held(lock_directory(settings.lock_dir), None)
            finally:
                game.kill()
        wait_until(lambda: embedded_box.states(batch)["succeeded"] > states["succeeded"], "it does not come back")
    finally:
        requests.request_stop()
        thread.join(60)
    assert not thread.is_alive()


def test_outside_its_hours_a_worker_waits_and_takes_nothing(embedded_box: Box) -> None:
    now = datetime.now(UTC)
    hours = f"{now + timedelta(hours=2):%H:%M}-{now + timedelta(hours=3):%H:%M} UTC"  # not for two hours
    batch = embedded_box.submit(*prompts(5))
    worker = embedded_box.start_worker(ready=False, hours=hours)
    wait_until(lambda: "outside its hours (HELIX_HOURS), until " in worker.log, lambda: worker.log)
    assert "Ready." not in worker.log
    assert embedded_box.states(batch) == {"queued": 5}
    told = helix(embedded_box, "status")
    assert f"Worker  on fake (pid {worker.process.pid}) rests: outside its hours (HELIX_HOURS), until " in told
    assert "The worker rests: outside its hours (HELIX_HOURS), until " in helix(embedded_box, "status", batch)
    (sign,) = json.loads(helix(embedded_box, "status", "--json"))["resting_workers"]
    assert datetime.fromisoformat(sign["until"]) == (now + timedelta(hours=2)).replace(second=0, microsecond=0)
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0, worker.log
    assert "No worker is running" in helix(embedded_box, "status")


def test_hours_that_are_none_are_refused_by_name(embedded_box: Box) -> None:
    done = embedded_box.run(sys.executable, "-m", "helix_jobs", "worker", "--hours", "22-7")
    assert done.returncode == 2
    assert "'22-7'; give hours such as 22:00-07:00" in done.stderr


@pytest.mark.thorough
def test_a_paused_worker_takes_no_jobs_and_keeps_its_device(box: Box) -> None:
    """Jobs that run end, the rest waits, no job is answered twice; whoever wants the device gets it all the same."""
    locks = lock_directory(box.settings.lock_dir)
    batch = box.submit(*prompts(1000, words=24))
    worker = box.start_worker(fake_step_seconds="0.05", shutdown_grace="30")
    wait_until(lambda: box.states(batch).get("succeeded", 0) > 3, "nothing runs")
    assert "take no more jobs. Let them go on with: " in helix(box, "pause", "--worker")
    wait_until(lambda: "this worker rests: paused (helix pause --worker)" in worker.log, lambda: worker.log)
    states = box.states(batch)
    assert set(states) == {"succeeded", "queued"}, "something was left running"
    assert all(row.attempts == (row.state == "succeeded") for row in box.rows(batch))
    assert is_held(locks, "fake")
    for command in (("status",), ("status", batch)):
        assert "This machine's workers are paused on every device. End it with: " in helix(box, *command)
    helix(box, "yield")
    assert not is_held(locks, "fake"), "yield returns when the device is free"
    helix(box, "yield", "--end")
    wait_until(lambda: worker.log.count("paused (helix pause --worker)") == 3, lambda: worker.log)
    assert box.states(batch) == states
    assert "The workers go on." in helix(box, "resume", "--worker")
    wait_until(lambda: box.states(batch)["succeeded"] > states["succeeded"], "it does not go on")
    helix(box, "cancel", batch)
    wait_until(lambda: "running" not in box.states(batch), "jobs still run")
    assert box.result_count(batch) == box.states(batch)["succeeded"]
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0, worker.log
    assert "Traceback" not in worker.log
    assert not is_held(locks, None)


@pytest.mark.thorough
def test_a_pause_at_once_hands_jobs_back_and_the_same_engine_goes_on(
    box: Box, short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the engine held of the jobs is gone from it: they are answered in the next shift, by what stayed loaded."""
    loaded: list[EngineProtocol] = []
    usual = workplace.load_engine

    def load(*arguments: Any) -> EngineProtocol:
        loaded.append(usual(*arguments))
        return loaded[-1]

    monkeypatch.setattr("tempfile.tempdir", str(short_tmp))
    monkeypatch.setattr(workplace, "load_engine", load)
    monkeypatch.setenv("HELIX_FAKE_STEP_SECONDS", "0.15")
    locks = lock_directory(box.settings.lock_dir)
    requests, codes, lines = StopRequests(), [], []
    thread = threading.Thread(
        target=lambda: codes.append(
            work_in_shifts(
                replace(box.settings, shutdown_grace=3600.0),
                time_limits=DEFAULT_TIME_LIMITS,
                on_progress=lines.append,
                stop=requests,
                handle_signals=False,
            )
        )
    )
    thread.start()
    try:
        batch = box.submit(*prompts(4, words=200))
        box.wait_states(batch, running=4)
        write_rest_note(locks, Wish.PAUSE, RestNote(at_once=True))
        wait_until(lambda: any("paused" in line for line in lines), lambda: str(lines))
        for row in box.rows(batch):
            assert (row.state, row.attempts, row.worker_id) == ("queued", 0, None)
        assert not loaded[0].has_unfinished()
        remove_rest_note(locks, Wish.PAUSE)
        box.wait_states(batch, succeeded=4)
        assert [row.attempts for row in box.rows(batch)] == [1] * 4
        assert box.result_count(batch) == 4
        assert len(loaded) == 1
    finally:
        requests.request_stop()
        thread.join(60)
    assert codes == [0]
    assert not is_held(locks, None)


def test_a_worker_that_starts_while_others_are_paused_waits_and_loads_nothing(embedded_box: Box) -> None:
    helix(embedded_box, "pause", "--worker")
    worker = embedded_box.start_worker(ready=False)
    wait_until(lambda: "this worker rests: paused" in worker.log, lambda: worker.log)
    assert not is_held(lock_directory(embedded_box.settings.lock_dir), None)
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0, worker.log
    assert "Ready." not in worker.log


@pytest.mark.thorough
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
    helix(box, "pause", "--worker")
    wait_until(lambda: "this worker rests: paused" in worker.log, lambda: worker.log)
    assert loaded - resident() < 200_000_000, "a paused one keeps them"
    helix(box, "resume", "--worker")
    wait_until(lambda: worker.log.count("Ready.") == 2, lambda: worker.log)
    helix(box, "yield")
    wait_until(lambda: "this worker rests: somebody else" in worker.log, lambda: worker.log)
    # The weights of 135 million parameters in four bytes each.
    wait_until(lambda: loaded - resident() > 400_000_000, lambda: f"{loaded:,} bytes, now {resident():,}")
    helix(box, "yield", "--end")
    wait_until(lambda: worker.log.count("Ready.") == 3, lambda: worker.log)
    box.wait_states(box.submit(*prompts(2)), succeeded=2)
