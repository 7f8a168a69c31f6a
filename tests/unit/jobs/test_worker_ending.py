"""What a stop does that takes longer than it should: whom it blames, and what it waits for."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any

import pytest
from worker_box import wait_until

from helix_jobs.errors import HelixError
from helix_jobs.storage.group_commit import GroupCommitWriter
from helix_jobs.worker import ending as worker_ending
from helix_jobs.worker.ending import WorkerEnding
from helix_jobs.worker.stop_button import StopButton

if TYPE_CHECKING:
    from collections.abc import Iterator

    from helix_jobs.storage.database import Database


class Service:
    """Jobs that do not end."""

    def __init__(self, active_count: int) -> None:
        self.active_count = active_count

    def begin_drain(self) -> None:
        """Nothing comes of it."""


@pytest.fixture
def writer(sqlite_database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[GroupCommitWriter]:
    monkeypatch.setattr(worker_ending, "HAND_BACK_SECONDS", 0.2)
    monkeypatch.setattr(worker_ending, "WRITER_SECONDS", 0.0)
    writer = GroupCommitWriter(sqlite_database)
    yield writer
    assert writer.close(20)


def stop(writer: GroupCommitWriter, active_count: int) -> WorkerEnding:
    """Stop a worker without a grace time; its consumer does not end."""
    button = StopButton()
    ending = WorkerEnding(button, 0.0, may_exit=False)
    service: Any = Service(active_count)
    ending.bind(service, writer)
    threading.Thread(target=ending.supervise, args=(lambda: None,), daemon=True).start()
    ending.stop()
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
    ending._give_up()  # what the timer would call
    wait_until(lambda: said in caplog.text, lambda: caplog.text)
    ending.consumer_ended()
    assert "database" not in caplog.text
    assert ending.exit_code == worker_ending.EXIT_OK
    assert writer.submit(lambda _: 5).result(20) == 5


def test_a_stop_with_a_database_that_hangs_without_a_word_goes_on_without_it(
    writer: GroupCommitWriter, caplog: pytest.LogCaptureFixture
) -> None:
    answer = threading.Event()
    writer.submit(lambda _: answer.wait(20))
    ending = stop(writer, 1)
    wait_until(lambda: "stopping without the database" in caplog.text, lambda: caplog.text)
    wait_until(writer._closing.is_set, "the writer is not closed")
    with pytest.raises(HelixError, match="closed"):
        writer.submit(lambda _: None)
    answer.set()
    ending.consumer_ended()
    assert "it takes no writes" in caplog.text
    assert ending.exit_code == worker_ending.EXIT_FAILED
