"""ComparedStore: a store and a plain model of it, to which every call is made, and the comparison of the two."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from hypothesis.stateful import RuleBasedStateMachine, invariant

from helix_jobs.errors import HelixError
from helix_jobs.storage import claims, publishing
from helix_jobs.storage.status import list_batches
from helix_jobs.storage.workers import worker_heartbeats
from tests.acceptance.made_up_jobs import COUNTED, FINAL, answers_of, read_jobs, recounted
from tests.acceptance.store_model import Claim, Job, StoreModel

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection

    from helix_jobs.storage.database import Database

START: Final = datetime(2026, 1, 1, tzinfo=UTC)
NAMES: Final = ("w1", "w2")


class _RolledBackError(Exception):
    """The transaction that holds the call does not commit."""


class ComparedStore(RuleBasedStateMachine):
    """One database, emptied at the start of each history."""

    def __init__(self, database: Database) -> None:
        super().__init__()
        self.database = database
        self.model = StoreModel()
        # Every id ever given, also of what is deleted, and every claim ever made, also of leases long gone.
        self.batch_ids: list[str] = []
        self.job_ids: list[int] = []
        self.claims: list[Claim] = []
        self.sent: list[int] = []
        # Answers that somebody looked at, each as batch, job and time: also those that are gone by now.
        self.seen: list[tuple[str, int, datetime]] = []
        self.heartbeats: list[datetime] = [START]
        self.leases: dict[int, int] = {}
        self._offset = timedelta()
        self._ticks = 0

    @invariant()
    def rows_are_as_the_model_says(self) -> None:
        model = self.model
        with self.database.read() as c:
            rows = read_jobs(c)
            assert rows == model.jobs
            assert [job.id for job in publishing.publishable(c, 1000)] == model.publishable()
            assert worker_heartbeats(c) == model.worker_heartbeats()
            for name in NAMES:
                held = {j.id: j.lease for j in rows.values() if j.state == "running" and j.worker_id == name}
                assert claims.held_leases(c, name) == held
            assert [job.id for job in publishing.publishable(c, 1000, without_twins=True)] == model.without_twins()
            assert publishing.any_waits(c) == model.any_waits()
            counted = {
                (row.batch_id, row.outcome): (int(row.jobs), int(row.tokens), int(row.refused), int(row.from_cache))
                for row in c.execute(COUNTED)
            }
            assert {key: sums for key, sums in counted.items() if any(sums)} == recounted(rows)
            statuses = {status.id: status for status in list_batches(c, 1000)}
            backlog = publishing.backlog(c)
        assert {i: (s.total, s.cancelled_at is not None, s.paused_at is not None) for i, s in statuses.items()} == {
            batch_id: (batch.total, batch.cancelled, batch.paused) for batch_id, batch in model.batches.items()
        }
        for batch_id, status in statuses.items():
            states = Counter(job.state for job in rows.values() if job.batch_id == batch_id)
            assert {state.value: count for state, count in status.counts.items() if count} == states
            errors = Counter(j.error_code for j in rows.values() if j.batch_id == batch_id and j.error_code)
            assert status.error_counts == errors
        sealed = {batch_id for batch_id, batch in model.batches.items() if batch.total is not None}
        assert backlog == sum(job.state == "queued" and job.batch_id in sealed for job in rows.values())
        self._check_by_itself(rows)

    def _check_by_itself(self, rows: dict[int, Job]) -> None:
        """The promises, without the model's help."""
        for job in rows.values():
            has_answer = job.state == "succeeded" or job.error_code == "not_accepted"
            assert bool(job.answers) == has_answer, "result rows exactly for a success or a kept answer"
            assert job.tries > 0 or job.error_code != "not_accepted"
            assert (job.finished_at is not None) == (job.state in FINAL)
            assert (job.error_code is not None) == (job.state == "failed")
            assert job.attempts <= job.max_attempts
            assert job.state != "queued" or (job.attempts < job.max_attempts and job.worker_id is None)
            assert job.lease >= self.leases.get(job.id, 0), "leases only rise"
            if job.from_cache is None:
                whole = [answers_of(Claim(job.id, job.lease, str(job.worker_id)))]
            else:
                whole = [answers_of(claim) for claim in self.claims if claim.job_id == job.from_cache]
            assert job.answers in ((), *whole), "all answers of one holder or none"
            # Each claim got a number of its own, so at most one of them can hold the job.
            numbers = [claim.lease for claim in self.claims if claim.job_id == job.id]
            assert len(set(numbers)) == len(numbers)
        self.leases = {job.id: job.lease for job in rows.values()}

    def _both(self, call: Callable[[Connection], Any], expect: Callable[[], Any], commit: str) -> Any:
        """Make the call to the store and to the model; both must answer alike, by a value or by an error."""
        if commit == "rolled back":
            with suppress(_RolledBackError, HelixError), self.database.write() as c:
                call(c)
                raise _RolledBackError
        answer = None
        for _ in range(2 if commit == "unanswered" else 1):
            answer = _outcome(lambda: self.database.transact(call))
            assert answer == _outcome(expect)
        return answer

    def _now(self) -> datetime:
        """No two calls share a moment, even when the clock is set back."""
        self._ticks += 1
        return START + self._offset + timedelta(microseconds=self._ticks)


def _outcome(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except HelixError as error:
        return type(error)
