"""Several ``submit --local`` at once, and workers that are not there any more."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import click
import pytest
from sqlalchemy import update

from helix_jobs.broker.embedded import EmbeddedBroker
from helix_jobs.cli.follow import worker_notice
from helix_jobs.cli.group import cli
from helix_jobs.client.local_worker import LocalWorker
from helix_jobs.errors import HomeInUseError
from helix_jobs.storage.process_identity import this_process
from helix_jobs.storage.records import NewWorker
from helix_jobs.storage.schema import workers
from helix_jobs.storage.workers import register_worker
from helix_jobs.worker.child import WorkerThread
from tests.worker_box import ROOT, wait_until, worker_is_live

if TYPE_CHECKING:
    from pathlib import Path

    from tests.worker_box import Box

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="shared locks of POSIX")


@pytest.fixture(autouse=True)
def own_locks(short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(short_tmp))
    monkeypatch.setattr("tempfile.tempdir", str(short_tmp))


def submit_local(box: Box, prompt: str) -> subprocess.Popen[str]:
    """A ``submit --local`` of one prompt, in a process of its own."""
    path = box.temporary / f"{prompt}.jsonl"
    path.write_text(f'{{"prompt": "{prompt}"}}\n', encoding="utf-8")
    return box.spawn(
        *(sys.executable, str(ROOT / "submit.py"), str(path), "--local"),
        env={"HELIX_FAKE_HANG": "endless"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def assert_nothing_is_left(box: Box) -> None:
    wait_until(lambda: not worker_is_live(box.settings), "a worker is left behind")
    wait_until(lambda: not EmbeddedBroker(box.settings.home).is_running(), "the broker is left behind")


@pytest.mark.thorough
def test_those_that_start_at_the_same_moment_share_one_worker(embedded_box: Box) -> None:
    box = embedded_box
    commands = [submit_local(box, f"prompt-{number}") for number in range(3)]
    for command in commands:
        _, err = command.communicate(timeout=60)
        assert (command.returncode, "1 job: 1 succeeded" in err) == (0, True), err
    assert_nothing_is_left(box)


@pytest.mark.thorough(fast=1)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_the_one_that_started_the_worker_may_leave_first(embedded_box: Box, number: int) -> None:
    """Interrupted or killed, it does not take the worker along that another command waits for."""
    box = embedded_box
    box.settings = replace(box.settings, shutdown_grace=1.0)
    first = submit_local(box, "endless story")
    wait_until(lambda: worker_is_live(box.settings), "no worker")
    with LocalWorker(box.settings, WorkerThread) as second:
        assert not second.started
        first.send_signal(number)
        first.communicate(timeout=60)
        batch = box.submit("still answered")
        wait_until(lambda: second.check() is None and box.states(batch) == {"succeeded": 1}, "not answered")
        assert len(box.worker_rows()) == 1
    assert_nothing_is_left(box)


@pytest.mark.thorough
def test_a_worker_that_is_killed_is_replaced_by_whoever_waits(embedded_box: Box) -> None:
    box = embedded_box
    first = submit_local(box, "endless story")
    wait_until(lambda: worker_is_live(box.settings), "no worker")
    with LocalWorker(box.settings, WorkerThread) as second:
        os.kill(first.pid, signal.SIGKILL)
        first.communicate()
        os.kill(box.worker_rows()[0].pid, signal.SIGKILL)
        batch = box.submit("answered by another")
        wait_until(lambda: second.check() is None and box.states(batch) == {"succeeded": 1}, "not answered")
        assert second.started
    assert_nothing_is_left(box)


def test_a_worker_that_still_loads_is_waited_for(embedded_box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plain worker of the same database has the device but no row yet."""
    box = embedded_box
    monkeypatch.setattr("helix_jobs.client.local_worker._DEVICE_RETRY_SECONDS", 0.1)
    threading.Timer(0.5, lambda: box.start_worker(ready=False)).start()
    told: list[str] = []
    with LocalWorker(box.settings, WorkerThread, on_progress=told.append):
        batch = box.submit("answered")
        box.wait_states(batch, succeeded=1)


@pytest.mark.thorough
def test_a_worker_of_another_database_under_the_same_home_is_told_of(
    embedded_box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lives for as long as any command uses that home, so nobody may wait for its end without an end."""
    box = embedded_box
    monkeypatch.setattr("helix_jobs.client.local_worker.DEVICE_PATIENCE", 0.0)
    other = replace(box.settings, database_url=f"sqlite:///{box.settings.home / 'other.db'}")
    with (
        LocalWorker(box.settings, WorkerThread),
        pytest.raises(
            HomeInUseError,
            match="does not serve this database; wait if it still loads its models",
        ),
    ):
        LocalWorker(other, WorkerThread).__enter__()
    assert_nothing_is_left(box)


def test_a_local_worker_that_only_looked_dead_is_used(embedded_box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a machine has slept its heartbeat is old, and a second worker must not wait for its end."""
    box = embedded_box
    monkeypatch.setattr("helix_jobs.client.local_worker._DEVICE_RETRY_SECONDS", 0.1)
    # Said when the second worker finds the home in use; until then the first one looks dead.
    waiting = f"waiting for the local worker that already runs under {box.settings.home}"
    told: list[str] = []
    with LocalWorker(box.settings, WorkerThread), monkeypatch.context() as patch:
        patch.setattr("helix_jobs.client.local_worker._any_alive", lambda _: waiting in told)
        with LocalWorker(box.settings, WorkerThread, on_progress=told.append):
            assert waiting in told
            box.wait_states(box.submit("answered"), succeeded=1)
        assert len(box.worker_rows()) == 1
    assert_nothing_is_left(box)


@pytest.fixture
def leftover(embedded_box: Box) -> Box:
    """A row whose process number is in use again: by this very process, which is no worker."""
    box = embedded_box
    box.submit("waits")
    identity = this_process()
    with box.database().write() as c:
        new = NewWorker(
            id="old", hostname="h", pid=identity.pid, device="fake", target_model="t", draft_model=None, slots=1,
            boot_id=identity.boot_id, pid_namespace=identity.pid_namespace, process_started=identity.started,
        )  # fmt: skip
        register_worker(c, new, datetime.now(UTC))
    return box


def test_an_old_heartbeat_is_no_worker(leftover: Box) -> None:
    assert worker_is_live(leftover.settings)
    with leftover.database().write() as c:
        c.execute(update(workers).values(heartbeat_at=datetime.now(UTC) - timedelta(days=20)))
    assert not worker_is_live(leftover.settings)
    with LocalWorker(leftover.settings, WorkerThread) as local:
        assert local.started


def test_nor_is_another_process_of_that_number(leftover: Box) -> None:
    with leftover.database().write() as c:
        c.execute(update(workers).values(process_started="long ago"))
    assert not worker_is_live(leftover.settings)
    with leftover.client() as client, click.Context(cli, info_name="helix"):
        (status,) = client.list()
        notice = worker_notice(status, list(client.live_workers()), lease=30.0, settings=client.settings)
        assert str(notice).startswith("The worker does not respond. Start one with: ")
