"""WorkerService: claim -> engine -> finish, for many jobs at once.

Each job has a Celery thread that waits here for its *ending*. Whoever knows first how a job ends settles it: the
engine (generated or failed), the heartbeat (the lease is lost), or the shutdown (the job is handed back). What the
ending means for the database is decided by a pure function and written in one place; every write carries the lease,
so one that comes too late is fenced by the database, counted and dropped.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from helix_jobs.errors import EngineBrokenError, ExhaustedError, HelixError, InvalidRequestError, RequestError
from helix_jobs.storage import store
from helix_jobs.storage.faults import MACHINES_OWN
from helix_jobs.storage.states import JobState
from helix_jobs.storage.store import FinishedJob
from helix_jobs.timing import DEFAULT_TIMING
from helix_jobs.wording import counted
from helix_jobs.worker.active_job import ActiveJob
from helix_jobs.worker.claims import JobClaims, Refusal
from helix_jobs.worker.counters import WorkerCounters
from helix_jobs.worker.engine_thread import EngineThread, RequestFailed
from helix_jobs.worker.gate import Entry, JobGate
from helix_jobs.worker.job_endings import Fail, Succeed, Unfinished, Withdrawn, decide, outcome, refused_by_database
from helix_jobs.worker.postponed_jobs import PostponedJobs
from helix_jobs.worker.request_encoder import RequestEncoder, engine_request_id
from helix_jobs.worker.runs import DatabaseRunRecorder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from helix_jobs.engine.protocol import EngineInfo, EngineProtocol
    from helix_jobs.observability.rounds import Rounds
    from helix_jobs.storage.database import Database
    from helix_jobs.storage.store import ClaimedJob
    from helix_jobs.worker.job_endings import Decision, Ending
    from helix_jobs.worker.runs import Writer

logger = logging.getLogger(__name__)


class WorkerService:
    """Runs jobs on one engine. Thread-safe.

    Args:
        database: For cancelling; everything a job writes goes through ``writer``.
        engine: Owned by this object's engine thread from ``start`` on.
        writer: The group commit writer.
        worker_id: This worker's row.
        grace: Seconds between ``begin_drain`` and handing back what is unfinished.
        on_broken: Called when the engine cannot go on, or no request can be encoded. Withdraws every job.
        job_timeout: Seconds a job may run in the engine; None for as long as it takes.
        rounds: Where the engine's thread notes that it comes round.
    """

    def __init__(
        self,
        database: Database,
        engine: EngineProtocol,
        writer: Writer,
        *,
        worker_id: str,
        grace: float,
        on_broken: Callable[[BaseException], None],
        job_timeout: float | None = None,
        solitude: float = DEFAULT_TIMING.solitude,
        rounds: Rounds | None = None,
    ) -> None:
        self.worker_id = worker_id
        self._database = database
        self._engine = engine
        self._writer = writer
        self._claims = JobClaims(writer, worker_id)
        self._encoder = RequestEncoder(engine)
        self._on_broken = on_broken
        self._grace = grace
        self._engine_thread = EngineThread(
            engine, DatabaseRunRecorder(writer, worker_id), on_broken, job_timeout=job_timeout, rounds=rounds
        )
        # Signal handlers never come here (see worker.py), so a plain lock will do.
        self._lock = threading.Lock()
        self._active: dict[int, ActiveJob] = {}
        self._draining = False
        self._given_up: Withdrawn | None = None
        self._grace_timer: threading.Timer | None = None
        self._ended = threading.Condition(self._lock)
        self._gate = JobGate(solitude)
        self._postponed = PostponedJobs()
        self._counters = WorkerCounters()

    @property
    def active_count(self) -> int:
        """Jobs being worked on."""
        return len(self._active)

    @property
    def idle_slots(self) -> int:
        """Batch slots without a job; 0 while no more are taken."""
        return 0 if self._draining else max(0, self._engine.info.max_batch_size - len(self._active))

    @property
    def stuck(self) -> int:
        """Jobs being worked on, if the engine has none of them to compute; 0 while no more are taken."""
        return 0 if self._draining or self._engine_thread.request_count else len(self._active)

    @property
    def kept_waiting(self) -> int:
        """Jobs that wait here: to be claimed, to run alone, or put off."""
        here = {job_id for job_id, lease in self.leases().items() if lease is None}
        return len(here | self._postponed.ids)

    @property
    def counters(self) -> WorkerCounters:
        """What came, ended, was refused or lost since the start."""
        return self._counters

    @property
    def engine(self) -> EngineThread:
        """The engine's thread, for its figures."""
        return self._engine_thread

    @property
    def info(self) -> EngineInfo:
        """What the engine is."""
        return self._engine.info

    def start(self) -> None:
        """Start the engine's thread."""
        self._engine_thread.start()

    def run_job(self, job_id: int) -> bool:
        """Bring a job to its end and return True, whatever the end: its message has done its duty.

        False: the worker is stopping and has not touched the job; its message belongs to another worker.
        """
        self._count(delivered=1)
        with self._lock:
            if self._draining:
                return False
            running = self._active.get(job_id)
            if running is not None:
                running.called_again = True
                return True
            active = self._active[job_id] = ActiveJob(job_id)
        try:
            return self._run(active)
        finally:
            with self._lock:
                del self._active[job_id]
                called_again = active.called_again
                self._ended.notify_all()
            if called_again:
                # The job may have been retried or reclaimed while its earlier run was still here; then that message
                # was its only one. A job that has ended, or is someone else's, is not changed.
                self._writer.submit(lambda c: store.unmark_published(c, [job_id]))

    def send_postponed(self) -> None:
        """Have the messages of jobs sent again that were put off and whose time has come. To be called now and then."""
        if due := self._postponed.take_due():
            self._writer.submit(lambda c: store.unmark_published(c, due))

    def count_rejected(self, count: int = 1) -> None:
        """Note that messages were dropped because no worker takes them."""
        self._count(rejected_messages=count)

    def abort_job(self, job_id: int) -> None:
        """Stop generating for this job, if it runs here. Unless it is cancelled as well, it returns to the queue."""
        active = self._active.get(job_id)
        if active is not None:
            self._withdraw(active, Withdrawn.HANDED_BACK)

    def cancel_job(self, job_id: int) -> None:
        """Cancel the job in the database, from a thread of its own: Celery's loop must not wait for a database."""
        threading.Thread(target=self._cancel, args=(job_id,), name="helix-cancel", daemon=True).start()

    def leases(self) -> Mapping[int, int | None]:
        """Job id -> lease of what runs here; None while a claim is under way."""
        with self._lock:
            return {job_id: None if job.claim is None else job.claim.lease for job_id, job in self._active.items()}

    def drop_lost(self, job_id: int, lease: int) -> None:
        """Stop working on a job whose lease is gone: cancelled, or given to another worker."""
        active = self._active.get(job_id)
        if active is not None and active.claim is not None and active.claim.lease == lease:
            logger.debug("lease lost", extra={"job_id": job_id})
            self._withdraw(active, Withdrawn.LEASE_LOST)

    def release_orphan(self, job_id: int, lease: int) -> None:
        """Hand back a lease the database says we hold and nobody here knows of (its claim's answer was lost).

        After ``abandon`` they are all of this kind, and their attempts count.
        """
        if self._given_up is Withdrawn.LEASE_LOST:
            return
        now = datetime.now(UTC)
        logger.warning("handing back a lease nobody here works on", extra={"job_id": job_id})
        self._writer.submit(lambda c: store.release(c, job_id, lease, self.worker_id, now))

    def begin_drain(self) -> None:
        """Take no further jobs; after the grace time hand back what is unfinished. May be called again."""
        with self._lock:
            if self._draining:
                return
            self._draining = True
            self._gate.close()
            self._grace_timer = threading.Timer(self._grace, self.hand_back)
            self._grace_timer.daemon = True
            self._grace_timer.start()
            running = len(self._active)
        if running:
            have = "has" if running == 1 else "have"
            logger.info("stopping: %s %s %.0f s to finish", counted(running, "job"), have, self._grace)
        else:
            logger.info("stopping: no job is running")

    def resume(self) -> None:
        """Take jobs again, after a drain that was not meant."""
        with self._lock:
            if self._grace_timer is not None:
                self._grace_timer.cancel()
            self._draining, self._given_up = False, None
            self._gate.reopen()

    def hand_back(self) -> None:
        """Give up every unfinished job now; each thread returns its job to the queue."""
        self._give_up(Withdrawn.HANDED_BACK)

    def abandon(self) -> None:
        """Give up every job and write nothing: the engine broke on them, so the attempt counts (see ``reclaim``)."""
        self._give_up(Withdrawn.LEASE_LOST)

    def wait_idle(self, timeout: float) -> bool:
        """Wait until no job is worked on; False after ``timeout`` seconds."""
        with self._lock:
            return self._ended.wait_for(lambda: not self._active, timeout)

    def stop(self, timeout: float) -> bool:
        """End the engine's thread, after its step; False if that takes longer. For when no job runs."""
        with self._lock:
            self._draining = True
            self._gate.close()
            if self._grace_timer is not None:
                self._grace_timer.cancel()
        stopped = self._engine_thread.stop(timeout)
        if stopped:
            self._engine.close()
        return stopped

    def _run(self, active: ActiveJob) -> bool:
        """Claim, generate, finish: beside other jobs, or alone where need be. False: the job was not touched."""
        for alone in (False, True):
            entry = self._gate.enter(alone=alone)
            if entry is Entry.CLOSED:
                return False
            if entry is Entry.TRY_LATER:
                self._postpone(active.job_id)
                return True
            try:
                claim = self._claims.claim(active.job_id, alone=alone)
                if claim is Refusal.NOTHING_TO_DO:
                    self._count(void_messages=1)
                    logger.debug("nothing to do for this message", extra={"job_id": active.job_id})
                elif claim is Refusal.UNREADABLE:
                    self._count_outcome(Fail(InvalidRequestError.code, claim.value))
                elif claim is Refusal.MUST_RUN_ALONE:
                    logger.info("a job that died with its workers waits to run alone", extra={"job_id": active.job_id})
                    continue
                else:
                    self._serve(active, claim)
                break
            finally:
                self._gate.leave()
        return True

    def _postpone(self, job_id: int) -> None:
        """Leave a job in the queue for as long as the gate is for others; its message is sent again then."""
        seconds = self._gate.seconds_for_others
        if not self._postponed.put_off(job_id, seconds):
            return  # the reconciler has sent its message meanwhile, as another worker may have room for it
        self._count(postponed=1)
        logger.warning(
            "a job at its last attempt cannot run alone, as others do not end; it is tried again in %.0f s",
            seconds,
            extra={"job_id": job_id},
        )

    def _serve(self, active: ActiveJob, claim: ClaimedJob) -> None:
        with self._lock:
            active.claim = claim
            given_up = self._given_up
        # Clocks of submitter and worker may differ; a negative wait helps nobody.
        waited = max(0.0, (claim.claimed_at - claim.queued_at).total_seconds())
        ending = given_up or self._generate(active, claim)
        self._persist(claim, decide(ending, info=self._engine.info, waited_seconds=waited))

    def _generate(self, active: ActiveJob, claim: ClaimedJob) -> Ending:
        try:
            request = self._encoder.encode(claim, active.ending)
        except RequestError as error:
            active.settle(RequestFailed(error))  # unless it was withdrawn meanwhile: then this may be why
        except (ExhaustedError, EngineBrokenError) as error:
            self._on_broken(error)  # who withdraws this job with all others
        else:
            if request is not None:
                self._engine_thread.submit(request, active.settle)
                if active.ending.done():  # it was withdrawn before the engine had it: that abort met nothing
                    self._engine_thread.abort(request.request_id)
        return active.ending.result()

    def _persist(self, claim: ClaimedJob, decision: Decision) -> None:
        """Write what was decided and wait for the commit."""
        job = FinishedJob(claim.id, claim.lease, self.worker_id)
        now = datetime.now(UTC)
        match decision:
            case Unfinished.DROP:
                self._count_fenced(claim)
                return
            case Unfinished.RELEASE:
                written = self._writer.submit(lambda c: store.release(c, claim.id, claim.lease, self.worker_id, now))
            case Fail(code, message):
                written = self._writer.submit(lambda c: store.finish_failed(c, job, code, message, now))
            case Succeed(row, run):
                # The run's id is known by the time this runs: its own insert stands before this in the writer.
                written = self._writer.submit(
                    lambda c: store.finish_succeeded(c, job, replace(row, run_id=run.row_id), now)
                )
        try:
            matched = written.result()
        except (HelixError, *MACHINES_OWN):
            raise  # nothing is wrong with the answer: the lease stays, and is handed back or reclaimed
        except Exception as error:
            if decision == (refused := refused_by_database(error)):
                raise
            # Never the error's text: Postgres quotes the row.
            logger.error("the database refused a result: %s", type(error).__name__, extra={"job_id": claim.id})  # noqa: TRY400
            self._persist(claim, refused)
            return
        if matched:
            self._count_outcome(decision)
            logger.debug("job ended: %s", outcome(decision), extra={"job_id": claim.id, "batch_id": claim.batch_id})
        else:
            self._count_fenced(claim)

    def _give_up(self, why: Withdrawn) -> None:
        with self._lock:
            self._draining = True
            self._gate.close()
            self._given_up = why
            jobs = [job for job in self._active.values() if job.claim is not None]
        if jobs:
            logger.info("%s: %s", counted(len(jobs), "unfinished job"), why.value)
        for job in jobs:
            self._withdraw(job, why)

    def _withdraw(self, active: ActiveJob, why: Withdrawn) -> None:
        """End a job without waiting for the engine, which may be in the middle of a long step, or hang.

        The ending comes first: a request submitted before it is aborted here, one submitted after it by ``_generate``.
        """
        active.settle(why)
        if active.claim is not None:
            self._engine_thread.abort(engine_request_id(active.job_id, active.claim.lease))

    def _cancel(self, job_id: int) -> None:
        try:
            self._database.transact(lambda c: store.cancel_job(c, job_id))
        except HelixError as error:
            logger.warning("a revoked job could not be cancelled: %s", error, extra={"job_id": job_id})

    def _count_outcome(self, decision: Decision) -> None:
        if isinstance(decision, Succeed | Fail):
            name = decision.code if isinstance(decision, Fail) else JobState.SUCCEEDED.value
            with self._lock:
                outcomes = {**self._counters.outcomes, name: self._counters.outcomes.get(name, 0) + 1}
                self._counters = replace(self._counters, outcomes=outcomes)

    def _count_fenced(self, claim: ClaimedJob) -> None:
        self._count(fenced=1)
        logger.debug("fenced: the lease has moved on", extra={"job_id": claim.id, "batch_id": claim.batch_id})

    def _count(self, **more: int) -> None:
        with self._lock:
            self._counters = replace(self._counters, **{n: getattr(self._counters, n) + more[n] for n in more})
