"""How a worker's end is carried out: in which order, whom a stop blames that lasts too long, what it waits for."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any

import pytest

from helix_jobs.errors import EngineBrokenError, ExhaustedError, HelixError
from helix_jobs.storage.group_commit import GroupCommitWriter
from helix_jobs.worker import ending as worker_ending
from helix_jobs.worker.ending import WorkerEnding
from helix_jobs.worker.shutdown import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK
from helix_jobs.worker.stop_requests import StopRequests
from tests.worker_box import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from helix_jobs.storage.database import Database


class Service:
    """Jobs that do not end, and what was asked of them."""

    def __init__(self, active_count: int = 1, *, has_threads: bool = True) -> None:
        self.active_count = active_count
        self.asked: list[str] = []
        self._has_threads = has_threads

    def begin_drain(self) -> None:
        self.asked.append("drain")
        if not self._has_threads:
            raise RuntimeError("can't start new thread")

    def hand_back(self) -> None:
        self.asked.append("hand back")

    def abandon(self) -> None:
        self.asked.append("abandon")


@pytest.fixture
def writer(sqlite_database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[GroupCommitWriter]:
    monkeypatch.setattr(worker_ending, "HAND_BACK_SECONDS", 0.2)
    monkeypatch.setattr(worker_ending, "WRITER_SECONDS", 0.0)
    writer = GroupCommitWriter(sqlite_database)
    yield writer
    assert writer.close(20)


def stop(writer: GroupCommitWriter, active_count: int) -> WorkerEnding:
    """Stop a worker without a grace time; its consumer does not end."""
    ending = WorkerEnding(StopRequests(), 0.0, may_exit=False)
    service: Any = Service(active_count)
    ending.bind(service, writer)
    threading.Thread(target=ending.supervise, args=(lambda: None,), daemon=True).start()
    ending.stop()
    wait_until(lambda: ending.state.is_stopping, "the stop is not heard")
    return ending


@pytest.mark.parametrize(("jobs", "said"), [(2, "2 jobs"), (0, "Celery's consumer")])
def test_a_stop_with_a_sound_database_says_what_it_waits_for_and_closes_no_writer(
    writer: GroupCommitWriter,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    jobs: int,
    said: str,
) -> None:
    monkeypatch.setattr(worker_ending, "HAND_BACK_SECONDS", 20.0)  # also how long the database may take for a write
    caplog.set_level(logging.INFO, logger="helix_jobs")
    ending = stop(writer, jobs)
    ending.overdue()
    wait_until(lambda: said in caplog.text, lambda: caplog.text)
    ending.consumer_ended()
    assert "database" not in caplog.text
    assert ending.state.exit_code == EXIT_OK
    assert writer.submit(lambda _: 5).result(20) == 5


def is_closed(writer: GroupCommitWriter) -> bool:
    try:
        writer.submit(lambda _: None)
    except HelixError as error:
        return "closed" in str(error)
    return False


def test_a_stop_with_a_database_that_hangs_without_a_word_goes_on_without_it(
    writer: GroupCommitWriter, caplog: pytest.LogCaptureFixture
) -> None:
    answer = threading.Event()
    writer.submit(lambda _: answer.wait(20))
    ending = stop(writer, 1)
    wait_until(lambda: "this worker stops without the database" in caplog.text, lambda: caplog.text)
    wait_until(lambda: is_closed(writer), "the writer is not closed")
    answer.set()
    ending.consumer_ended()
    assert "it takes no writes" in caplog.text
    assert ending.state.exit_code == EXIT_FAILED


def carry_out(service: Any, *events: Callable[[WorkerEnding, StopRequests], object]) -> tuple[WorkerEnding, int]:
    """Have a worker end by these events; return its ending and how often its consumer was told to end."""
    requests, told = StopRequests(), []
    ending = WorkerEnding(requests, 0.0, may_exit=False)
    no_writer: Any = None
    ending.bind(service, no_writer)
    for happen in events:
        happen(ending, requests)
    ending.consumer_ended()
    ending.supervise(lambda: told.append(1))
    ending.consumer_ended()  # ends the timer that was set meanwhile
    return ending, len(told)


class HeldLog:
    """Holds the first failure's log line, as a disk that hangs does, until ``go_on`` is set."""

    def __init__(self) -> None:
        self.is_writing, self.go_on = threading.Event(), threading.Event()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno == logging.CRITICAL and not self.is_writing.is_set():
            self.is_writing.set()
            assert self.go_on.wait(20)
        return True


@pytest.fixture
def held_log() -> Iterator[HeldLog]:
    log = HeldLog()
    worker_ending.logger.addFilter(log)
    yield log
    log.go_on.set()
    worker_ending.logger.removeFilter(log)


def test_a_failure_s_actions_do_not_wait_for_the_log(held_log: HeldLog) -> None:
    """A stop that comes meanwhile finds the worker broken and sets no limit of its own: the failure's must be set."""
    service = Service()
    ending = WorkerEnding(StopRequests(), 0.0, may_exit=False)
    no_writer: Any = None
    ending.bind(service, no_writer)  # type: ignore[arg-type]
    reporter = threading.Thread(target=break_down, args=(ending, None), daemon=True)
    supervisor = threading.Thread(target=ending.supervise, args=(lambda: None,), daemon=True)
    reporter.start()
    assert held_log.is_writing.wait(20)
    supervisor.start()
    ending.stop()
    wait_until(lambda: service.asked == ["abandon"], lambda: str(service.asked))
    held_log.go_on.set()
    ending.consumer_ended()
    reporter.join(20)
    supervisor.join(20)
    assert not supervisor.is_alive()


def test_failures_act_in_the_order_in_which_they_came(held_log: HeldLog) -> None:
    """Jobs that were abandoned are not handed back by an earlier failure whose log line comes later."""
    service = Service()
    ending = WorkerEnding(StopRequests(), 0.0, may_exit=False)
    no_writer: Any = None
    ending.bind(service, no_writer)  # type: ignore[arg-type]
    reporters = [threading.Thread(target=happen, args=(ending, None), daemon=True) for happen in (exhaust, break_down)]
    reporters[0].start()
    assert held_log.is_writing.wait(20)
    reporters[1].start()
    reporters[1].join(20)
    held_log.go_on.set()
    reporters[0].join(20)
    ending.consumer_ended()
    ending.supervise(lambda: None)
    assert service.asked == ["hand back", "drain", "abandon"]
    ending.consumer_ended()  # ends the timer that was set meanwhile


def ask(_: WorkerEnding, requests: StopRequests) -> None:
    requests.request_stop()


def interrupt(_: WorkerEnding, requests: StopRequests) -> None:
    requests.request_stop(interrupt=True)


def break_down(ending: WorkerEnding, _: StopRequests) -> None:
    ending.break_down(EngineBrokenError("the device is gone"))


def exhaust(ending: WorkerEnding, _: StopRequests) -> None:
    ending.break_down(ExhaustedError("no descriptors"))


def leave(ending: WorkerEnding, _: StopRequests) -> None:
    ending.leave_for_supervisor("nothing comes")


@pytest.mark.parametrize(
    ("events", "asked", "code"),
    [
        ([ask], ["drain"], EXIT_OK),
        ([ask, ask], ["drain"], EXIT_OK),
        ([interrupt], ["drain"], EXIT_OK),
        ([interrupt, interrupt, interrupt], ["drain", "hand back"], EXIT_INTERRUPTED),
        ([break_down, break_down, ask], ["abandon"], EXIT_FAILED),
        ([exhaust], ["hand back", "drain"], EXIT_FAILED),
        ([leave], ["drain"], EXIT_FAILED),
        ([leave, interrupt], ["drain", "hand back"], EXIT_FAILED),
    ],
)
def test_what_is_asked_of_the_service(events: list[Any], asked: list[str], code: int) -> None:
    service = Service()
    ending, told = carry_out(service, *events)
    assert service.asked == asked
    assert ending.state.exit_code == code
    assert told >= 1


def test_jobs_that_were_abandoned_are_not_handed_back_by_an_impatient_person() -> None:
    """Their attempts count: one of them may be what broke the engine."""
    service = Service()
    carry_out(service, break_down, interrupt, interrupt)
    assert service.asked == ["abandon"]


@pytest.mark.parametrize("fail", [break_down, exhaust, leave])
def test_a_failure_is_told_once(fail: Any, caplog: pytest.LogCaptureFixture) -> None:
    carry_out(Service(), ask, fail, fail, fail)
    assert caplog.text.count("this worker cannot go on and stops") == 1


def test_a_stop_without_a_thread_for_its_timers_hands_back_once() -> None:
    service = Service(has_threads=False)
    ending, told = carry_out(service, ask)
    assert service.asked == ["drain", "hand back"]
    assert (ending.state.exit_code, told) == (EXIT_OK, 1)


def test_a_worker_that_is_not_a_process_of_its_own_fails_where_one_would_end_at_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    service = Service()
    ending, _ = carry_out(service, lambda ending, _: ending.at_once("the writer has not come round for 120 s"))
    assert service.asked == ["abandon"]
    assert ending.state.exit_code == EXIT_FAILED
    assert "the writer has not come round" in caplog.text


@pytest.mark.parametrize(
    ("events", "state", "attempts"),
    [
        ([interrupt, interrupt], "queued", 0),
        ([exhaust], "queued", 0),
        ([ask, exhaust, exhaust, interrupt], "queued", 0),
        ([break_down], "running", 1),
        ([break_down, interrupt, exhaust, ask], "running", 1),
    ],
)
def test_whatever_happens_no_message_is_acknowledged_before_its_job_is_settled(
    make_bench: Any, events: list[Any], state: str, attempts: int
) -> None:
    """Handed back, or leased still: of an abandoned job the reconciler takes the lease, and its attempt counts."""
    bench = make_bench(hang="endless")
    ids = bench.add("endless", "endless too")
    running = bench.run(*ids)
    bench.wait_running(*ids)
    service = bench.service
    _, told = carry_out(service, *events)
    assert [future.result(20) for future in running] == [True, True]
    for _ in range(3):
        bench.heartbeat.check_leases()
    bench.writer.submit(lambda _: None).result(20)
    assert [(row.state, row.attempts) for row in bench.rows().values()] == [(state, attempts)] * 2
    assert service.run_job(ids[0]) is False, "it takes no more"
    assert told >= 1
