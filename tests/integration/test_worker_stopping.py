"""How a worker stops: signals, the grace time, a terminal that closes, a database that takes no writes."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from helix_jobs.broker.celery import consumer
from helix_jobs.broker.celery.service import bound_service
from helix_jobs.broker.publisher import EmbeddedBroker
from helix_jobs.engine.fake_engine import FakeEngine
from helix_jobs.worker import process as worker
from helix_jobs.worker.job_service import WorkerService
from tests.integration.quick_worker import start_quick_worker
from tests.worker_box import WorkerProcess, prompts, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.worker_box import Box

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")

# The limit falls when Celery has its event loop, and is about to connect for the first time.
OUT_OF_DESCRIPTORS = """
import resource
from helix_jobs.broker.celery.patient_consumer import PatientConsumer
connect = PatientConsumer.connect
def connect_without(self):
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 4096))
    return connect(self)
PatientConsumer.connect = connect_without
"""
ENDLESS_TOKENIZER = """
import time
from helix_jobs.engine.fake_engine import FakeEngine
FakeEngine.encode = lambda *_: time.sleep(3600)
"""
NO_CONSUMER = """
import errno
from helix_jobs.broker.celery import consumer
def make_consumer(*_):
    raise OSError(errno.EMFILE, "Too many open files")
consumer.make_consumer = make_consumer
"""


@pytest.fixture
def inherit_hangup() -> Iterator[Callable[[signal.Handlers], object]]:
    """Sets what SIGHUP means to the processes a test starts; the tests themselves may run under nohup."""
    before = signal.getsignal(signal.SIGHUP)
    yield lambda meaning: signal.signal(signal.SIGHUP, meaning)
    signal.signal(signal.SIGHUP, before)


def shut_down_by_remote_control(box: Box) -> subprocess.CompletedProcess[str]:
    return box.run(sys.executable, "-m", "celery", "-A", "helix_jobs.broker.celery.app", "control", "shutdown")


@pytest.mark.thorough
def test_a_closed_terminal_stops_a_worker_and_its_broker(
    embedded_box: Box, inherit_hangup: Callable[[signal.Handlers], object]
) -> None:
    inherit_hangup(signal.SIG_DFL)
    batch = embedded_box.submit(*prompts(20))
    worker = embedded_box.start_worker(fresh=True)
    embedded_box.wait_states(batch, succeeded=20)
    worker.send(signal.SIGHUP)
    assert worker.wait() == 0, worker.log
    assert not EmbeddedBroker(embedded_box.settings.home).is_running()


@pytest.mark.thorough
def test_under_nohup_a_worker_outlives_its_terminal(
    embedded_box: Box, inherit_hangup: Callable[[signal.Handlers], object]
) -> None:
    inherit_hangup(signal.SIG_IGN)
    worker = embedded_box.start_worker(fresh=True)
    worker.send(signal.SIGHUP)
    embedded_box.wait_states(embedded_box.submit(*prompts(20)), succeeded=20)
    assert "stopping" not in worker.log
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0


@pytest.mark.thorough(fast=1)
def test_sigterm_lets_running_jobs_finish_and_leaves_the_rest_queued(box: Box) -> None:
    batch = box.submit(*prompts(60, words=24))
    worker = box.start_worker(fake_step_seconds="0.1", shutdown_grace="30")
    wait_until(lambda: box.states(batch).get("succeeded", 0) > 3, "nothing runs")
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0, worker.log
    assert "Traceback" not in worker.log, "prefetched messages go back without a word"

    states = box.states(batch)
    assert set(states) == {"succeeded", "queued"}, "something was left running"
    assert all(row.attempts == (row.state == "succeeded") for row in box.rows(batch))
    box.start_worker()
    box.wait_states(batch, succeeded=60)
    assert box.result_count(batch) == 60


@pytest.mark.thorough(fast=1)
def test_what_does_not_finish_within_the_grace_time_is_handed_back(box: Box) -> None:
    batch = box.submit(*["endless story"] * 5)
    worker = box.start_worker(fake_hang="endless", shutdown_grace="1")
    box.wait_states(batch, running=5)
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0, worker.log

    for row in box.rows(batch):
        assert (row.state, row.attempts, row.published_at, row.worker_id) == ("queued", 0, None, None)
    box.start_worker()
    box.wait_states(batch, succeeded=5)


@pytest.mark.thorough(fast=1)
@pytest.mark.parametrize("trouble", ["hang", "stall"])
def test_a_second_interrupt_is_immediate(embedded_box: Box, trouble: str) -> None:
    """Even when the engine's step does not come back."""
    box = embedded_box
    batch = box.submit(*["endless story"] * 5)
    worker = box.start_worker(**{f"fake_{trouble}": "endless", "shutdown_grace": "3600"})
    box.wait_states(batch, running=5)
    worker.send(signal.SIGINT)
    wait_until(lambda: " 3600 s to finish" in worker.log, "the first interrupt is not noticed")
    worker.send(signal.SIGINT)
    assert worker.wait(20) == 130, worker.log

    assert box.states(batch) == {"queued": 5}
    assert {row.attempts for row in box.rows(batch)} == {0}
    assert not EmbeddedBroker(box.settings.home).is_running()


@pytest.mark.thorough
@pytest.mark.parametrize("wish", ["SIGTERM", "remote control"])
def test_a_stop_ends_a_worker_whose_database_is_locked(embedded_box: Box, wish: str) -> None:
    script = (
        "import sys\n"
        "from helix_jobs.storage import sqlite_engine\n"
        "from helix_jobs.worker import ending as worker_ending, process as worker\n"
        "from helix_jobs.settings import Settings\n"
        "sqlite_engine.BUSY_TIMEOUT_SECONDS = 0.5\n"
        "worker_ending.WRITER_SECONDS = worker_ending.HAND_BACK_SECONDS = 0.5\n"
        "sys.exit(worker.run_worker(Settings.from_environment()))\n"
    )
    box = embedded_box
    batch = box.submit(*["endless story"] * 5)
    quick = {"HELIX_FAKE_HANG": "endless", "HELIX_SHUTDOWN_GRACE": "0"}
    with subprocess.Popen(
        [sys.executable, "-c", script], env=box.environment | quick, stderr=subprocess.PIPE, text=True
    ) as worker:
        box.wait_states(batch, running=5)
        database = box.database()
        with database.write():
            if wish == "SIGTERM":
                worker.send_signal(signal.SIGTERM)
            else:
                shut_down_by_remote_control(box)
            try:
                _, log = worker.communicate(timeout=45)
            finally:
                worker.kill()
        database.dispose()
    assert worker.returncode == 1, log
    assert box.states(batch) == {"running": 5}
    box.start_worker()
    box.wait_states(batch, succeeded=5)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("grace", "numbers", "code"),
    [("0", [signal.SIGTERM], 0), ("3600", [signal.SIGINT] * 2, 130)],
    ids=["once", "twice"],
)
def test_a_stop_waits_for_no_tokenizer(box: Box, grace: str, numbers: list[int], code: int) -> None:
    """The database takes the hand-back, and no job loses an attempt."""
    batch = box.submit(*prompts(3))
    worker = start_quick_worker(box, window=60.0, before=ENDLESS_TOKENIZER, HELIX_SHUTDOWN_GRACE=grace)
    box.wait_states(batch, running=3)
    for number in numbers:
        worker.send(number)
        wait_until(lambda: " s to finish" in worker.log, "the stop is not noticed")
    assert worker.wait() == code, worker.log
    assert [(row.state, row.attempts) for row in box.rows(batch)] == [("queued", 0)] * 3
    assert "database" not in worker.log.partition("stopping")[2]
    assert "CRITICAL" not in worker.log


def test_an_idle_worker_ends_in_time_whatever_its_database_does(embedded_box: Box) -> None:
    """No job waits for the database, but the heartbeat and the worker's last word do."""
    script = (
        "import sys\n"
        "from helix_jobs.storage import sqlite_engine\n"
        "from helix_jobs.worker import ending as worker_ending, process as worker\n"
        "from helix_jobs.settings import Settings\n"
        "sqlite_engine.BUSY_TIMEOUT_SECONDS, worker_ending.HARD_EXIT_SECONDS = 600.0, 1.0\n"
        "sys.exit(worker.run_worker(Settings.from_environment()))\n"
    )
    box = embedded_box
    log_path = box.new_log()
    with log_path.open("wb") as log:
        process = subprocess.Popen([sys.executable, "-c", script], env=box.environment, stdout=log, stderr=log)
    idle = box.adopt(WorkerProcess(process, log_path), ready=False)
    box.wait_states(box.submit(*prompts(4)), succeeded=4)
    database = box.database()
    with database.write():
        idle.send(signal.SIGTERM)
        assert idle.wait() == 0, idle.log
    database.dispose()


def test_a_stop_between_two_consumers_stays_a_stop(
    services_box: Box, short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Celery's loop has ended by itself twice; SIGTERM comes in the pause before it is started again."""
    requests, slots = worker.StopRequests(), []

    class Broken:
        was_asked_to_stop = False

        def start(self) -> None:
            service = bound_service()
            assert isinstance(service, WorkerService)
            slots.append(service.idle_slots)
            if len(slots) == 2:
                requests.request_stop()

    monkeypatch.setattr(consumer, "make_consumer", lambda *_: Broken())
    monkeypatch.setattr("tempfile.tempdir", str(short_tmp))
    assert worker.run_worker(services_box.settings, stop=requests, handle_signals=False) == 0
    assert slots == [4, 4, 0], "it went on taking jobs"


def test_a_stop_without_a_thread_for_its_timers_hands_back_at_once(
    services_box: Box, short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing could end the grace time."""
    monkeypatch.setattr("tempfile.tempdir", str(short_tmp))
    monkeypatch.setenv("HELIX_FAKE_HANG", "endless")
    requests, codes = worker.StopRequests(), []
    settings = replace(services_box.settings, shutdown_grace=3600.0)

    def run() -> None:
        codes.append(worker.run_worker(settings, stop=requests, handle_signals=False))

    def refuse(_timer: threading.Timer) -> None:
        raise RuntimeError("can't start new thread")

    batch = services_box.submit("endless story")
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    services_box.wait_states(batch, running=1)
    monkeypatch.setattr(threading.Timer, "start", refuse)
    requests.request_stop()
    thread.join(30)
    assert codes == [0]
    assert services_box.states(batch) == {"queued": 1}


def test_an_exhausted_machine_costs_no_job_an_attempt(
    services_box: Box, short_tmp: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A step meets the limit of descriptors; the worker ends for its supervisor, and at once."""

    def refuse(_engine: FakeEngine) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("tempfile.tempdir", str(short_tmp))
    monkeypatch.setattr(FakeEngine, "step", refuse)
    settings = replace(services_box.settings, shutdown_grace=3600.0)
    batch = services_box.submit(*prompts(6))
    codes: list[int] = []
    thread = threading.Thread(
        target=lambda: codes.append(worker.run_worker(settings, handle_signals=False)), daemon=True
    )
    thread.start()
    thread.join(30)
    assert codes == [1]
    assert services_box.states(batch) == {"queued": 6}
    assert {row.attempts for row in services_box.rows(batch)} == {0}
    assert "LimitNOFILE" in caplog.text


@pytest.mark.thorough
@pytest.mark.skipif(sys.platform != "linux", reason="prlimit")
def test_a_worker_without_descriptors_ends_for_its_supervisor(box: Box) -> None:
    """Celery ends its loop as if it had been told to; a supervisor must not take that for somebody's wish."""
    import resource

    worker = box.start_worker(shutdown_grace="1")
    box.wait_states(box.submit(*prompts(1)), succeeded=1)  # Celery is connected
    resource.prlimit(worker.process.pid, resource.RLIMIT_NOFILE, (3, 4096))
    publisher = box.publisher()
    publisher.ask(lambda client: client.client_kill_filter(_type="normal", skipme=True))
    publisher.close()
    assert worker.wait() == 1, worker.log
    assert "does not stay up" in worker.log, worker.log


@pytest.mark.thorough
@pytest.mark.skipif(sys.platform != "linux", reason="prlimit")
def test_a_worker_that_runs_out_of_descriptors_before_it_is_connected_ends_for_its_supervisor(box: Box) -> None:
    worker = start_quick_worker(box, window=60.0, before=OUT_OF_DESCRIPTORS)
    assert worker.wait() == 1, worker.log
    assert "the broker cannot be reached: this process may open no more descriptors" in worker.log, worker.log
    assert "does not stay up" in worker.log, worker.log


@pytest.mark.thorough(fast=1)
def test_a_stop_is_heard_while_no_consumer_can_be_made(box: Box) -> None:
    """Nothing runs then, so nothing is waited for, and the end is the wish of who asked for it."""
    worker = start_quick_worker(box, window=60.0, before=NO_CONSUMER)
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0, worker.log
    assert "does not stay up" not in worker.log, worker.log


@pytest.mark.thorough
@pytest.mark.skipif(sys.platform != "linux", reason="prlimit")
def test_a_worker_whose_every_job_waits_for_descriptors_ends_for_its_supervisor(services_box: Box) -> None:
    """Its connections to the database are cut and cannot be replaced; the broker still delivers to it."""
    import resource

    box = services_box
    worker = start_quick_worker(box, window=1.0, HELIX_SHUTDOWN_GRACE="0")
    box.wait_states(box.submit(*prompts(1)), succeeded=1)  # Celery is connected
    resource.prlimit(worker.process.pid, resource.RLIMIT_NOFILE, (3, 4096))
    database = box.database()
    with database.write() as c:
        c.exec_driver_sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    database.dispose()
    batch = box.submit(*prompts(4))
    assert worker.wait() == 1, worker.log
    assert "LimitNOFILE" in worker.log
    assert "Traceback" not in worker.log
    assert "takes no writes" not in worker.log
    box.start_worker()
    box.wait_states(batch, succeeded=4)


@pytest.mark.thorough(fast=1)
def test_a_shutdown_by_remote_control_is_somebodys_wish(box: Box) -> None:
    worker = box.start_worker()
    done = shut_down_by_remote_control(box)
    assert worker.wait() == 0, (worker.log, done)
