"""What the store should do, said again in plain Python: the model the state machine holds it against."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from helix_jobs.errors import IdempotencyConflictError, NotFoundError, UnfinishedSubmissionError
from helix_jobs.storage.chosen_retries import NO_LIMIT
from helix_jobs.storage.records import Reclaimed

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from helix_jobs.storage.batch_changes import EndedJob


Answers = tuple[tuple[int, str], ...]


@dataclass
class Job:
    """A row of ``jobs``, and the answers in its rows of ``results`` by choice."""

    id: int
    batch_id: str
    line: int
    priority: int
    max_attempts: int
    queued_at: datetime
    state: str = "queued"
    attempts: int = 0
    tries: int = 0
    lease: int = 0
    worker_id: str | None = None
    published_at: datetime | None = None
    claimed_at: datetime | None = None
    finished_at: datetime | None = None
    error_code: str | None = None
    answer_key: str | None = None
    setup_key: str | None = None
    answers: Answers = ()
    from_cache: int | None = None


@dataclass
class Batch:
    key: str | None
    total: int | None = None
    cancelled: bool = False
    paused: bool = False


@dataclass
class WorkerRow:
    heartbeat: datetime
    stopped: bool = False


@dataclass(frozen=True)
class Claim:
    """What a worker believes to hold, now or long ago; ``tries`` are those of the job at its claim."""

    job_id: int
    lease: int
    worker_id: str
    tries: int = 0

    @property
    def setup_key(self) -> str | None:
        """What its answers depend on, where others may have them."""
        return None if self.tries else setup_of(self.worker_id)


def setup_of(worker_id: str) -> str:
    """A setup of its own for each worker."""
    return worker_id.ljust(32, "0")


@dataclass
class StoreModel:
    """Each method answers as the store's function of the same name and changes what that should change."""

    batches: dict[str, Batch] = field(default_factory=dict)
    jobs: dict[int, Job] = field(default_factory=dict)
    workers: dict[str, WorkerRow] = field(default_factory=dict)

    # -- submitting

    def create_batch(self, batch_id: str, key: str | None) -> tuple[str, bool]:
        for known, batch in self.batches.items():
            if key is not None and batch.key == key:
                return known, True
        self.batches[batch_id] = Batch(key)
        return batch_id, False

    def insert_jobs(self, batch_id: str, lines: Iterable[int]) -> int:
        """The jobs themselves are added by ``adopt``, once the database has given them ids."""
        batch = self._batch(batch_id)
        new = set(lines) - {job.line for job in self.of(batch_id)}
        if new and batch.total is not None:
            raise IdempotencyConflictError
        return len(new)

    def adopt(self, job: Job) -> None:
        self.jobs.setdefault(job.id, job)

    def seal_batch(self, batch_id: str, total: int) -> None:
        batch = self._batch(batch_id)
        if total != (len(self.of(batch_id)) if batch.total is None else batch.total):
            raise IdempotencyConflictError
        batch.total = total

    def delete_batch(self, batch_id: str) -> bool:
        batch = self.batches.get(batch_id)
        if batch is None or batch.total is not None:
            return False
        self._remove(batch_id)
        return True

    # -- publishing

    def takable(self) -> list[Job]:
        return [job for job in self.jobs.values() if self._runnable(job)]

    def publishable(self) -> list[int]:
        waiting = [job for job in self.takable() if job.published_at is None]
        return [job.id for job in sorted(waiting, key=lambda job: (-job.priority, job.id))]

    def without_twins(self) -> list[int]:
        """The same, without jobs whose equal is under way or comes before them."""
        keys = set()
        found = []
        for job in (self.jobs[job_id] for job_id in self.publishable()):
            key = None if job.tries else job.answer_key
            if key is None or not (key in keys or self._has_twin(job)):
                found.append(job.id)
                keys.add(key)
        return found

    def any_waits(self) -> bool:
        return any(job.published_at for job in self.takable()) or bool(self.without_twins())

    def mark_published(self, ids: Iterable[int], now: datetime | None) -> int:
        marked = [self.jobs[i] for i in set(ids) if i in self.jobs and self.jobs[i].state == "queued"]
        for job in marked:
            job.published_at = now
        return len(marked)

    def republish_unseen(self, before: datetime) -> int:
        unseen = [j for j in self.jobs.values() if j.state == "queued" and j.published_at and j.published_at < before]
        return self.mark_published([job.id for job in unseen], None)

    # -- stored answers

    def sources(self, job: Job, setup: str) -> dict[int, Job]:
        """Whose answers the job may take: each by the job that was answered first."""
        if not self._runnable(job) or job.tries or job.answer_key is None:
            return {}
        return {
            other.from_cache or other.id: other
            for other in self.jobs.values()
            if (other.state, other.answer_key, other.setup_key) == ("succeeded", job.answer_key, setup)
        }

    def take(self, job: Job, source: Job, now: datetime) -> None:
        job.state, job.lease, job.claimed_at, job.finished_at = "succeeded", job.lease + 1, now, now
        job.worker_id, job.setup_key, job.answers = source.worker_id, source.setup_key, source.answers
        job.from_cache = source.from_cache or source.id

    def leave_to_twin(self, job_id: int) -> bool:
        job = self.jobs.get(job_id)
        left = job is not None and job.state == "queued" and not job.tries and self._has_twin(job, only_running=True)
        if job is not None and left:
            job.published_at = None
        return left

    def _has_twin(self, job: Job, *, only_running: bool = False) -> bool:
        """Whether an equal job is under way: with a message that is no less urgent, or running."""
        return job.answer_key is not None and any(
            other.state == "running" or (other.state == "queued" and other.published_at and not only_running)
            for other in self.jobs.values()
            if other is not job
            and other.answer_key == job.answer_key
            and (only_running or other.priority >= job.priority)
        )

    # -- leases

    def claim(self, job_id: int, worker_id: str, now: datetime, setup: str | None = None) -> tuple[int, int] | None:
        """Lease and attempts of the claim."""
        job = self.jobs.get(job_id)
        if job is None:
            return None
        waits = setup and not job.tries and (self.sources(job, setup) or self._has_twin(job, only_running=True))
        if self._runnable(job) and not waits:
            job.state, job.worker_id, job.claimed_at = "running", worker_id, now
            job.lease, job.attempts = job.lease + 1, job.attempts + 1
        # Held by this very call: either just now, or when it was made the first time and its answer was lost.
        own = job.state == "running" and (job.worker_id, job.claimed_at) == (worker_id, now)
        return (job.lease, job.attempts) if own else None

    def finish(self, claim: Claim, state: str, code: str | None, answers: Answers, now: datetime) -> bool:
        job = self.jobs[claim.job_id]
        if self._holds(claim):
            job.state, job.finished_at, job.error_code, job.answers = state, now, code, answers
            job.setup_key = claim.setup_key if state == "succeeded" and job.answer_key else None
        return (job.state, job.lease, job.worker_id, job.finished_at) == (state, claim.lease, claim.worker_id, now)

    def refuse(self, claim: Claim, now: datetime) -> bool:
        job = self.jobs[claim.job_id]
        if self._holds(claim):
            job.tries += 1
            self._requeue(job, now, attempts=0)
        return job.queued_at == now and job.tries > 0 and job.lease >= claim.lease

    def finish_not_accepted(self, claim: Claim, answers: Answers, now: datetime) -> bool:
        if self._holds(claim):
            self.jobs[claim.job_id].tries += 1
        return self.finish(claim, "failed", "not_accepted", answers, now)

    def release(self, claim: Claim, now: datetime) -> bool:
        if not self._holds(claim):
            return False
        job = self.jobs[claim.job_id]
        self._requeue(job, now, attempts=job.attempts - 1)
        return True

    def give_back(self, claim: Claim, now: datetime) -> bool:
        job = self.jobs[claim.job_id]
        if not self._holds(claim) or job.attempts >= job.max_attempts:
            return False
        self._requeue(job, now, attempts=job.attempts)
        return True

    def reclaim(self, worker_id: str, seen: datetime | None, now: datetime) -> Reclaimed | None:
        worker = self.workers.get(worker_id)
        if seen is not None and worker is not None and worker.heartbeat != seen:
            return None
        held = [job for job in self.jobs.values() if job.state == "running" and job.worker_id == worker_id]
        spent = [job for job in held if job.attempts >= job.max_attempts]
        for job in spent:
            job.state, job.finished_at, job.error_code = "failed", now, "worker_lost"
        for job in held:
            if job not in spent:
                self._requeue(job, now, attempts=job.attempts)
        if worker is not None:
            worker.stopped = True
        return Reclaimed(requeued=len(held) - len(spent), failed=len(spent))

    # -- workers

    def register_worker(self, worker_id: str, now: datetime) -> None:
        self.workers[worker_id] = WorkerRow(now)

    def heartbeat(self, worker_id: str, now: datetime) -> bool:
        worker = self.workers.get(worker_id)
        if worker is None or worker.stopped:
            return False
        worker.heartbeat = now
        return True

    def stop_worker(self, worker_id: str) -> None:
        if worker_id in self.workers:
            self.workers[worker_id].stopped = True

    def worker_heartbeats(self) -> dict[str, datetime | None]:
        """Who is to be judged: registered and not stopped, or holding a lease all the same."""
        holders = {job.worker_id for job in self.jobs.values() if job.state == "running" and job.worker_id}
        judged = holders | {worker_id for worker_id, worker in self.workers.items() if not worker.stopped}
        return {name: self.workers[name].heartbeat if name in self.workers else None for name in judged}

    # -- a person

    def cancel_job(self, job_id: int, now: datetime) -> int:
        if job_id not in self.jobs:
            raise NotFoundError
        return self._cancel([self.jobs[job_id]], now)

    def cancel_batch(self, batch_id: str, now: datetime) -> int:
        batch = self._batch(batch_id)
        if batch.total is None:
            self._remove(batch_id)
            return 0
        batch.cancelled, batch.paused = True, False
        return self._cancel(self.of(batch_id), now)

    def pause_batch(self, batch_id: str) -> int:
        return self._pause(batch_id, paused=True)

    def resume_batch(self, batch_id: str) -> int:
        return self._pause(batch_id, paused=False)

    def _pause(self, batch_id: str, *, paused: bool) -> int:
        """Nobody knows any more which messages there are: a delivery while the batch is paused leads to nothing."""
        batch = self._batch(batch_id)
        if batch.total is None:
            raise UnfinishedSubmissionError
        runnable = [job for job in self.of(batch_id) if job.state in ("queued", "running")]
        if not runnable or batch.cancelled or batch.paused == paused:
            return 0
        batch.paused = paused
        waiting = [job for job in runnable if job.state == "queued"]
        for job in waiting:
            job.published_at = None
        return len(waiting)

    def refuse_stored(self, batch_id: str, job_id: int, seen: datetime, max_tries: int, now: datetime) -> int:
        batch = self.batches.get(batch_id)
        job = self.jobs.get(job_id)
        if batch is None or batch.total is None or batch.cancelled or job is None:
            return 0
        if job.state == "succeeded" and job.finished_at == seen:
            job.tries += 1
            if job.tries >= max_tries:
                job.state, job.error_code, job.finished_at = "failed", "not_accepted", now
            else:
                job.answers, job.from_cache, job.finished_at = (), None, None
                self._requeue(job, now, attempts=0)
        return int(job.tries > 0 and now in (job.queued_at, job.finished_at))

    def retry_chosen(self, chosen: EndedJob, batch_id: str, now: datetime) -> int:
        """One job that has ended, as it was seen."""
        if chosen.state == "succeeded":
            self._begin_retry(batch_id)
            return self.refuse_stored(batch_id, chosen.job_id, chosen.finished_at, NO_LIMIT, now)
        return self.retry_batch(batch_id, now, chosen)

    def retry_batch(self, batch_id: str, now: datetime, only: EndedJob | None = None) -> int:
        self._begin_retry(batch_id)
        again = [job for job in self.of(batch_id) if job.state in ("failed", "cancelled")]
        if only is not None:
            again = [job for job in again if (job.id, job.finished_at) == (only.job_id, only.finished_at)]
        for job in again:
            # What was refused or replaced once takes no stored answer, unless its last try was refused as well.
            job.tries = min(job.tries, 0 if job.error_code == "not_accepted" else 1)
            job.finished_at = job.error_code = None
            job.answers, job.from_cache = (), None
            self._requeue(job, now, attempts=0)
        return len(again)

    def _begin_retry(self, batch_id: str) -> None:
        batch = self._batch(batch_id)
        if batch.total is None:
            raise UnfinishedSubmissionError
        batch.cancelled = False

    # -- looking

    def of(self, batch_id: str) -> list[Job]:
        return [job for job in self.jobs.values() if job.batch_id == batch_id]

    def snapshot(self) -> dict[int, Job]:
        return {job_id: replace(job) for job_id, job in self.jobs.items()}

    def _batch(self, batch_id: str) -> Batch:
        if batch_id not in self.batches:
            raise NotFoundError
        return self.batches[batch_id]

    def _remove(self, batch_id: str) -> None:
        del self.batches[batch_id]
        self.jobs = {job_id: job for job_id, job in self.jobs.items() if job.batch_id != batch_id}

    def _runnable(self, job: Job) -> bool:
        batch = self.batches[job.batch_id]
        return job.state == "queued" and batch.total is not None and not batch.cancelled and not batch.paused

    def _holds(self, claim: Claim) -> bool:
        job = self.jobs[claim.job_id]
        return job.state == "running" and (job.lease, job.worker_id) == (claim.lease, claim.worker_id)

    @staticmethod
    def _cancel(jobs: Iterable[Job], now: datetime) -> int:
        ended = [job for job in jobs if job.state in ("queued", "running")]
        for job in ended:
            job.state, job.finished_at, job.error_code = "cancelled", now, None
        return len(ended)

    @staticmethod
    def _requeue(job: Job, now: datetime, *, attempts: int) -> None:
        job.state, job.queued_at, job.attempts = "queued", now, attempts
        job.published_at = job.claimed_at = job.worker_id = None
