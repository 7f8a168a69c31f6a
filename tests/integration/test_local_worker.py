"""The worker behind ``submit --local``."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from helix_jobs.broker.publisher import EmbeddedBroker
from helix_jobs.client import local_process
from helix_jobs.client.local_worker import LocalWorker
from helix_jobs.errors import BrokerUnreachableError, DeviceInUseError, HelixError
from helix_jobs.observability.log_file import LOG_BYTES
from helix_jobs.worker import process as worker
from helix_jobs.worker.child import WorkerThread
from tests.worker_box import ROOT, make_box, wait_until, worker_is_live

if TYPE_CHECKING:
    from pathlib import Path

    from tests.worker_box import Box

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")


@pytest.fixture(autouse=True)
def own_locks(short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(short_tmp))
    monkeypatch.setattr("tempfile.tempdir", str(short_tmp))
    monkeypatch.setenv("HELIX_LOCK_DIR", str(short_tmp / "locks"))


def test_a_worker_is_started_reports_and_is_stopped(embedded_box: Box) -> None:
    box = embedded_box
    batch = box.submit(*[f"word {i}" for i in range(40)])
    with LocalWorker(box.settings, WorkerThread) as local:
        assert local.started
        box.wait_states(batch, succeeded=40)
        local.check()
        with LocalWorker(box.settings, WorkerThread) as second:
            assert not second.started, "one runs already"
        batch = box.submit("still there")
        box.wait_states(batch, succeeded=1)
    assert not worker_is_live(box.settings)
    assert not EmbeddedBroker(box.settings.home).is_running()
    assert local.log_path is not None
    assert "run of" in local.log_path.read_text(encoding="utf-8")


# It looks at its log as often as no test would wait for.
IMPATIENT = """
from helix_jobs.worker import child
child._LOG_SECONDS = 0.1
raise SystemExit(child.main())
"""


@pytest.mark.thorough
def test_its_log_is_cut_while_it_works(embedded_box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_process, "python_command", lambda *_: [sys.executable, "-P", "-c", IMPATIENT])
    box = embedded_box
    with LocalWorker(box.settings, WorkerThread) as local:
        box.wait_states(box.submit("before"), succeeded=1)
        log = local.log_path
        assert log is not None
        with log.open("ab") as stream:
            stream.truncate(LOG_BYTES)
            stream.write(b"the last line\n")
        wait_until(lambda: log.stat().st_size < LOG_BYTES, "it grows for ever")
        kept = log.with_name("worker.log.1")
        assert b"the last line\n" in kept.read_bytes()
        assert kept.stat().st_size == LOG_BYTES
        box.wait_states(box.submit("after"), succeeded=1)
    after = log.read_bytes()
    assert b"run of" in after
    assert b"\0" not in after, "it goes on where it was, not at the new beginning"


@pytest.mark.thorough
def test_an_interrupt_hands_running_jobs_back(embedded_box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    box = embedded_box
    monkeypatch.setenv("HELIX_FAKE_HANG", "endless")
    batch = box.submit("endless story")
    with (  # noqa: PT012  (the interrupt comes out of the block, like a person's)
        pytest.raises(KeyboardInterrupt),
        LocalWorker(replace(box.settings, shutdown_grace=3600.0), WorkerThread),
    ):
        box.wait_states(batch, running=1)
        raise KeyboardInterrupt
    assert box.states(batch) == {"queued": 1}
    assert not EmbeddedBroker(box.settings.home).is_running()


@pytest.mark.thorough
def test_its_errors_are_raised_here(embedded_box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    box = embedded_box
    with pytest.raises(BrokerUnreachableError, match=r"127\.0\.0\.1:1"):
        LocalWorker(replace(box.settings, redis_url="redis://127.0.0.1:1/0"), WorkerThread).__enter__()
    # Another home, the same device.
    monkeypatch.setattr("helix_jobs.client.local_worker.DEVICE_PATIENCE", 0.0)
    other = make_box(box.temporary / "other", box.temporary, redis_url=None, database_url=None)
    with (
        LocalWorker(other.settings, WorkerThread),
        pytest.raises(DeviceInUseError, match="does not serve this database; stop it, or set HELIX_DEVICE"),
    ):
        LocalWorker(box.settings, WorkerThread).__enter__()


@pytest.mark.thorough
def test_a_worker_that_dies_is_started_again(embedded_box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    box = embedded_box
    monkeypatch.setenv("HELIX_FAKE_DIE", "poison")
    batch = box.submit("poison", "fine")
    doings = set()
    with LocalWorker(box.settings, WorkerThread) as local:

        def ended() -> bool:
            doings.add(local.check())
            return box.states(batch) == {"failed": 1, "succeeded": 1}

        wait_until(ended, lambda: f"{box.states(batch)} {doings}")
    assert [row.error_code for row in box.rows(batch)] == ["worker_lost", None]
    assert any("the worker ended by itself (exit code 86; see" in str(doing) for doing in doings), doings


@pytest.mark.thorough
def test_one_that_dies_again_and_again_is_given_up(embedded_box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    box = embedded_box
    monkeypatch.setenv("HELIX_FAKE_DIE", "poison")
    monkeypatch.setattr("helix_jobs.client.local_worker.MAX_DEATHS", 2)
    with LocalWorker(box.settings, WorkerThread) as local:
        box.submit("poison")

        def given_up() -> bool:
            try:
                local.check()
            except HelixError as error:
                return "2 times (exit code 86); see" in str(error) and "worker.log" in str(error)
            return False

        wait_until(given_up, "nobody gives up")


def test_it_stops_when_its_parent_is_killed(embedded_box: Box) -> None:
    box = embedded_box
    script = (
        "import time\n"
        "from helix_jobs.client.local_worker import LocalWorker\n"
        "from helix_jobs.settings import Settings\n"
        "from helix_jobs.worker.child import WorkerThread\n"
        "with LocalWorker(Settings.from_environment(), WorkerThread):\n"
        "    time.sleep(600)\n"
    )
    parent = box.spawn(sys.executable, "-c", script)
    wait_until(lambda: worker_is_live(box.settings), "no worker")
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    wait_until(lambda: not worker_is_live(box.settings), "the worker outlives its parent")
    wait_until(lambda: not EmbeddedBroker(box.settings.home).is_running(), "the broker is left behind")


@pytest.mark.thorough
def test_a_checkout_that_is_not_installed_serves_any_directory(embedded_box: Box, short_tmp: Path) -> None:
    """What ``python /somewhere/helix/submit.py`` does: only the parent's own path leads to the package."""
    box = embedded_box
    script = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from helix_jobs.client.local_worker import LocalWorker\n"
        "from helix_jobs.settings import Settings\n"
        "from helix_jobs.worker.child import WorkerThread\n"
        "with LocalWorker(Settings.from_environment(), WorkerThread) as local:\n"
        "    print(local.started)\n"
    )
    clean = {name: value for name, value in box.environment.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=short_tmp,
        env=clean,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "True"), done.stderr


@pytest.mark.thorough
def test_modules_of_the_working_directory_are_not_run(embedded_box: Box, short_tmp: Path) -> None:
    """A Django project has a ``celery.py``; many others have a ``queue.py`` or a ``random.py``."""
    project = short_tmp / "project"
    project.mkdir()
    for name in ("queue", "redis", "celery", "random", "json", "tokenize", "secrets", "types", "platform", "kombu"):
        (project / f"{name}.py").write_text("raise SystemExit('a module of my own project')\n", encoding="utf-8")
    (project / "prompts.jsonl").write_text('{"prompt": "one"}\n', encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(ROOT / "submit.py"), "prompts.jsonl", "--local"],
        cwd=project,
        env=embedded_box.environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "1 succeeded" in done.stderr
    assert "my own project" not in done.stderr


def test_in_memory_everything_runs_in_this_process(embedded_box: Box) -> None:
    """What ``--local`` does on Windows without a Redis."""
    box = embedded_box
    settings = replace(box.settings, redis_url="memory://")
    batch = box.submit(*[f"word {i}" for i in range(40)])
    with LocalWorker(settings, WorkerThread) as local:
        assert local.started
        assert local.log_path is None
        box.wait_states(batch, succeeded=40)
    assert not EmbeddedBroker(box.settings.home).is_running()
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("helix")] == []


@pytest.mark.thorough
def test_a_process_may_run_workers_of_several_installations_one_after_the_other(
    embedded_box: Box, short_tmp: Path
) -> None:
    """Each has a queue of its own name, and may have a broker of its own kind."""
    other = make_box(short_tmp / "other", short_tmp, redis_url="memory://", database_url=None)
    batches = [box.submit("a b c") for box in (embedded_box, other)]
    stop, ready, codes = worker.StopRequests(), threading.Event(), []

    def run() -> None:
        codes.append(
            worker.run_worker(embedded_box.settings, stop=stop, on_ready=lambda _: ready.set(), handle_signals=False)
        )

    thread = threading.Thread(target=run)
    thread.start()
    assert ready.wait(30)
    embedded_box.wait_states(batches[0], succeeded=1)
    stop.request_stop()
    thread.join(30)
    assert codes == [0]
    with LocalWorker(other.settings, WorkerThread):
        other.wait_states(batches[1], succeeded=1)
    other.close()
