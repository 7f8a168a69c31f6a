"""WorkerService: claim -> engine -> finish, for many jobs at once.

Each job has a Celery thread that waits here for its *ending*. Whoever knows first how a job ends settles it: the
engine (generated or failed), the heartbeat (the lease is lost), or the shutdown (the job is handed back). What the
ending means for the database is decided by a pure function (``job_endings``) and written in one place (``Settlement``).
"""

from __future__ import annotations

import logging
import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from helix_jobs.errors import EngineBrokenError, ExhaustedError, HelixError, InvalidRequestError, RequestError
from helix_jobs.storage import batch_changes, claims, publishing
from helix_jobs.wording import counted
from helix_jobs.worker.active_jobs import ActiveJob, ActiveJobs, NotTaken
from helix_jobs.worker.counters import Counting
from helix_jobs.worker.engine_thread import EngineThread, RequestFailed
from helix_jobs.worker.gate import Entry, JobGate
from helix_jobs.worker.job_claims import JobClaims, Refusal
from helix_jobs.worker.job_endings import Fail, Withdrawn, decide
from helix_jobs.worker.request_encoder import RequestEncoder, engine_request_id
from helix_jobs.worker.runs import DatabaseRunRecorder
from helix_jobs.worker.settlement import Settlement
from helix_jobs.worker.waiting_for_solitude import PostponedJobs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from helix_jobs.engine.protocol import EngineInfo, EngineProtocol
    from helix_jobs.observability.rounds import Rounds
    from helix_jobs.storage.database import Database
    from helix_jobs.storage.records import ClaimedJob
    from helix_jobs.worker.counters import WorkerCounters
    from helix_jobs.worker.job_endings import Ending
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
        gate: Where jobs pass before they are claimed.
        encoder: Makes the engine's requests of what is stored.
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
        gate: JobGate | None = None,
        encoder: RequestEncoder | None = None,
        rounds: Rounds | None = None,
    ) -> None:
        self.worker_id = worker_id
        self._database = database
        self._engine = engine
        self._writer = writer
        self._claims = JobClaims(writer, worker_id)
        self._encoder = encoder or RequestEncoder(engine)
        self._on_broken = on_broken
        self._grace = grace
        self._engine_thread = EngineThread(
            engine, DatabaseRunRecorder(writer, worker_id), on_broken, job_timeout=job_timeout, rounds=rounds
        )
        self._jobs = ActiveJobs()
        self._gate = gate or JobGate()
        self._postponed = PostponedJobs()
        self._counting = Counting()
        self._settlement = Settlement(writer, worker_id, self._counting)
        # Orders begin_drain, resume and stop, which change jobs, gate and timer together.
        self._lock = threading.Lock()
        self._grace_timer: threading.Timer | None = None

    @property
    def active_count(self) -> int:
        """Jobs being worked on."""
        return len(self._jobs)

    @property
    def idle_slots(self) -> int:
        """Batch slots without a job; 0 while no more are taken."""
        return 0 if self._jobs.is_closed else max(0, self._engine.info.max_batch_size - len(self._jobs))

    @property
    def stuck(self) -> int:
        """Jobs being worked on, if the engine has none of them to compute; 0 while no more are taken."""
        return 0 if self._jobs.is_closed or self._engine_thread.request_count else len(self._jobs)

    @property
    def kept_waiting(self) -> int:
        """Jobs that wait here: to be claimed, to run alone, or put off."""
        here = {job_id for job_id, lease in self.leases().items() if lease is None}
        return len(here | self._postponed.ids)

    @property
    def counters(self) -> WorkerCounters:
        """What came, ended, was refused or lost since the start."""
        return self._counting.so_far

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
        self._counting.add(delivered=1)
        active = self._jobs.take(job_id)
        if isinstance(active, NotTaken):
            return active is NotTaken.ACTIVE
        try:
            return self._run(active)
        finally:
            if self._jobs.drop(active):
                # The job may have been retried or reclaimed while its earlier run was still here; then that message
                # was its only one. A job that has ended, or is someone else's, is not changed.
                self._writer.submit(lambda c: publishing.unmark_published(c, [job_id]))

    def send_postponed(self) -> None:
        """Have the messages of jobs sent again that were put off and whose time has come. To be called now and then."""
        if due := self._postponed.take_due():
            self._writer.submit(lambda c: publishing.unmark_published(c, due))

    def count_rejected(self, count: int = 1) -> None:
        """Note that messages were dropped because no worker takes them."""
        self._counting.add(rejected_messages=count)

    def abort_job(self, job_id: int) -> None:
        """Stop generating for this job, if it runs here. Unless it is cancelled as well, it returns to the queue."""
        active = self._jobs.get(job_id)
        if active is not None:
            self._withdraw(active, Withdrawn.HANDED_BACK)

    def cancel_job(self, job_id: int) -> None:
        """Cancel the job in the database, from a thread of its own: Celery's loop must not wait for a database."""
        threading.Thread(target=self._cancel, args=(job_id,), name="helix-cancel", daemon=True).start()

    def leases(self) -> Mapping[int, int | None]:
        """Job id -> lease of what runs here; None while a claim is under way."""
        return self._jobs.leases()

    def drop_lost(self, job_id: int, lease: int) -> None:
        """Stop working on a job whose lease is gone: cancelled, or given to another worker."""
        active = self._jobs.get(job_id)
        if active is not None and active.claim is not None and active.claim.lease == lease:
            logger.debug("lease lost", extra={"job_id": job_id})
            self._withdraw(active, Withdrawn.LEASE_LOST)

    def release_orphan(self, job_id: int, lease: int) -> None:
        """Hand back a lease the database says we hold and nobody here knows of (its claim's answer was lost).

        After ``abandon`` they are all of this kind, and their attempts count.
        """
        if self._jobs.given_up is Withdrawn.LEASE_LOST:
            return
        now = datetime.now(UTC)
        logger.warning("handing back a lease nobody here works on", extra={"job_id": job_id})
        self._writer.submit(lambda c: claims.release(c, job_id, lease, self.worker_id, now))

    def begin_drain(self) -> None:
        """Take no further jobs; after the grace time hand back what is unfinished. May be called again."""
        with self._lock:
            if not self._jobs.close():
                return
            self._gate.close()
            self._grace_timer = threading.Timer(self._grace, self.hand_back)
            self._grace_timer.daemon = True
            self._grace_timer.start()
            running = len(self._jobs)
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
            self._jobs.reopen()
            self._gate.reopen()

    def hand_back(self) -> None:
        """Give up every unfinished job now; each thread returns its job to the queue."""
        self._give_up(Withdrawn.HANDED_BACK)

    def abandon(self) -> None:
        """Give up every job and write nothing: the engine broke on them, so the attempt counts (see ``reclaim``)."""
        self._give_up(Withdrawn.LEASE_LOST)

    def stop(self, timeout: float) -> bool:
        """End the engine's thread, after its step; False if that takes longer. For when no job runs."""
        with self._lock:
            self._jobs.close()
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
                    self._counting.add(void_messages=1)
                    logger.debug("nothing to do for this message", extra={"job_id": active.job_id})
                elif claim is Refusal.UNREADABLE:
                    self._settlement.count(Fail(InvalidRequestError.code, claim.value))
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
        self._counting.add(postponed=1)
        logger.warning(
            "a job at its last attempt cannot run alone, as others do not end; it is tried again in %.0f s",
            seconds,
            extra={"job_id": job_id},
        )

    def _serve(self, active: ActiveJob, claim: ClaimedJob) -> None:
        given_up = self._jobs.note_claim(active, claim)
        # Clocks of submitter and worker may differ; a negative wait helps nobody.
        waited = max(0.0, (claim.claimed_at - claim.queued_at).total_seconds())
        ending = given_up or self._generate(active, claim)
        self._settlement.persist(claim, decide(ending, info=self._engine.info, waited_seconds=waited))

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

    def _give_up(self, why: Withdrawn) -> None:
        self._gate.close()
        jobs = self._jobs.give_up(why)
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
            self._database.transact(lambda c: batch_changes.cancel_job(c, job_id))
        except HelixError as error:
            logger.warning("a revoked job could not be cancelled: %s", error, extra={"job_id": job_id})
