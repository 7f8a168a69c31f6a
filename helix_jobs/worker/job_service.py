"""WorkerService: claim -> engine -> judge -> finish, for many jobs at once.

Each job has a Celery thread that waits here for the job's *ending*. Three parts may settle it, and the first one
counts: the engine (generated or failed), the heartbeat (the lease is lost), or the shutdown (the job is handed back). A
pure function (``job_endings``) decides how the ending changes the database, and one place (``Settlement``) writes it.
"""

from __future__ import annotations

import logging
import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from helix_jobs.errors import EngineBrokenError, ExhaustedError, HelixError, InvalidRequestError, RequestError
from helix_jobs.storage import batch_changes, claims, publishing
from helix_jobs.wording import counted
from helix_jobs.worker.acceptance import judged
from helix_jobs.worker.active_jobs import ActiveJob, ActiveJobs, NotTaken
from helix_jobs.worker.answer_judge import AnswerJudge
from helix_jobs.worker.counters import Counting
from helix_jobs.worker.engine_outage import EngineOutage, Wait
from helix_jobs.worker.engine_run import RequestFailed
from helix_jobs.worker.engine_thread import EngineThread
from helix_jobs.worker.gate import Entry, JobGate
from helix_jobs.worker.job_claims import JobClaims, Refusal
from helix_jobs.worker.job_endings import Fail, Unfinished, Withdrawn, decide
from helix_jobs.worker.request_encoder import RequestEncoder, engine_request_id
from helix_jobs.worker.runs import DatabaseRunRecorder
from helix_jobs.worker.settlement import Settlement
from helix_jobs.worker.waiting_for_solitude import PostponedJobs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from helix_jobs.engine.protocol import EngineInfo, EngineProtocol
    from helix_jobs.observability.rounds import Rounds
    from helix_jobs.storage.answer_cache import AnswerSetup
    from helix_jobs.storage.database import Database
    from helix_jobs.storage.records import ClaimedJob
    from helix_jobs.worker.counters import WorkerCounters
    from helix_jobs.worker.engine_run import GrowthReader
    from helix_jobs.worker.job_endings import Ending
    from helix_jobs.worker.runs import Writer

logger = logging.getLogger(__name__)


class WorkerService:
    """Runs jobs on one engine. Thread-safe.

    Args:
        database: For cancelling; all other writes of a job go through ``writer``.
        engine: Used by this object's engine thread alone from ``start`` to ``stop``.
        writer: The group commit writer.
        worker_id: This worker's row.
        grace: Seconds between ``begin_drain`` and handing back unfinished jobs.
        on_broken: Called when the engine cannot go on, or no request can be encoded. Withdraws every job.
        job_timeout: Seconds a job may run in the engine; None for as long as it takes.
        gate: Jobs pass it before they are claimed.
        encoder: Encodes stored requests for the engine.
        rounds: Counts the rounds of the engine's thread for the dead man's switch.
        growth: Is shown answers while they grow.
        setup: Whose stored answers jobs take; None while that is not known, or none may.
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
        growth: GrowthReader | None = None,
        setup: Callable[[], AnswerSetup | None] = lambda: None,
    ) -> None:
        self.worker_id = worker_id
        self._database = database
        self._engine = engine
        self._writer = writer
        self._claims = JobClaims(writer, worker_id, setup)
        self._encoder = encoder or RequestEncoder(engine)
        self._on_broken = on_broken
        self._grace = grace
        self._engine_thread = EngineThread(
            engine,
            DatabaseRunRecorder(writer, worker_id, engine.energy),
            on_broken,
            job_timeout=job_timeout,
            rounds=rounds,
            growth=growth,
        )
        self._jobs = ActiveJobs()
        self._gate = gate or JobGate()
        self._outage = EngineOutage(lambda: engine.info.outage)
        self._postponed = PostponedJobs()
        self._counting = Counting()
        self._judge = AnswerJudge()
        self._settlement = Settlement(writer, worker_id, self._counting, setup)
        # Orders begin_drain, resume, giving up and stop, which change jobs, gate and timer together.
        self._lock = threading.Lock()
        self._grace_timer: threading.Timer | None = None

    @property
    def active_count(self) -> int:
        """Jobs being worked on."""
        return len(self._jobs)

    @property
    def idle_slots(self) -> int:
        """Batch slots without a job; 0 while no more are taken, and while the engine's server is lost."""
        if self._jobs.is_closed or self._outage.lasts:
            return 0
        return max(0, self._engine.info.max_batch_size - len(self._jobs))

    @property
    def stuck(self) -> int:
        """Jobs being worked on while the engine holds none of them; 0 if it holds one, or no more are taken."""
        idles = self._jobs.is_closed or self._outage.lasts or self._engine_thread.request_count
        return 0 if idles else len(self._jobs)

    @property
    def kept_waiting(self) -> int:
        """Jobs that this worker keeps waiting: to be claimed, to run alone, or postponed."""
        here = {job_id for job_id, lease in self.leases().items() if lease is None}
        return len(here | self._postponed.ids)

    @property
    def counters(self) -> WorkerCounters:
        """Jobs and messages counted since the start."""
        return self._counting.so_far

    @property
    def engine(self) -> EngineThread:
        """The engine's thread, for its figures."""
        return self._engine_thread

    @property
    def info(self) -> EngineInfo:
        """The engine's description."""
        return self._engine.info

    def start(self) -> None:
        """Start the engine's thread."""
        self._engine_thread.start()

    def run_job(self, job_id: int) -> bool:
        """Bring a job to its end, good or bad, and return True: its message may be acknowledged.

        False: the worker is stopping and has not touched the job; the message must go to another worker.
        """
        self._counting.add(delivered=1)
        active = self._jobs.take(job_id)
        if isinstance(active, NotTaken):
            return active is NotTaken.ACTIVE
        try:
            return self._run(active)
        finally:
            if self._jobs.drop(active):
                # The job may have been retried or reclaimed during its earlier run here; then the dropped message was
                # its only one. This changes no job that has ended or runs elsewhere.
                self._writer.submit(lambda c: publishing.unmark_published(c, [job_id]))

    def send_postponed(self) -> None:
        """Have the messages of postponed jobs sent again once their time has come. Called now and then."""
        if due := self._postponed.take_due():
            self._writer.submit(lambda c: publishing.unmark_published(c, due))

    def count_rejected(self, count: int = 1) -> None:
        """Note that messages were dropped because no worker takes them."""
        self._counting.add(rejected_messages=count)

    def abort_job(self, job_id: int) -> None:
        """Stop generating for this job, if it runs here. The job returns to the queue unless it is also cancelled."""
        active = self._jobs.get(job_id)
        if active is not None:
            self._withdraw(active, Withdrawn.HANDED_BACK)

    def cancel_job(self, job_id: int) -> None:
        """Cancel the job in the database, from a thread of its own: Celery's loop must not wait for a database."""
        threading.Thread(target=self._cancel, args=(job_id,), name="helix-cancel", daemon=True).start()

    def leases(self) -> Mapping[int, int | None]:
        """Job id -> lease, for jobs that run here; None while a claim is under way."""
        return self._jobs.leases()

    def drop_lost(self, job_id: int, lease: int) -> None:
        """Stop working on a job whose lease is gone: cancelled, or given to another worker."""
        active = self._jobs.get(job_id)
        if active is not None and active.claim is not None and active.claim.lease == lease:
            logger.debug("lease lost", extra={"job_id": job_id})
            self._withdraw(active, Withdrawn.LEASE_LOST)

    def release_orphan(self, job_id: int, lease: int) -> None:
        """Hand back a lease that the database says we hold but no thread here knows: the answer to its claim was lost.

        After ``abandon`` every lease is an orphan, and its attempt counts.
        """
        if self._jobs.given_up is Withdrawn.LEASE_LOST:
            return
        now = datetime.now(UTC)
        logger.warning("this worker hands back the lease of a job that it does not run", extra={"job_id": job_id})
        self._writer.submit(lambda c: claims.release(c, job_id, lease, self.worker_id, now))

    def begin_drain(self) -> None:
        """Take no further jobs; after the grace time hand back unfinished jobs. May be called again."""
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
        """Take jobs again, after an unintended drain."""
        with self._lock:
            if self._grace_timer is not None:
                self._grace_timer.cancel()
            self._jobs.reopen()
            self._gate.reopen()

    def hand_back(self) -> None:
        """Give up every unfinished job now; each thread returns its job to the queue."""
        self._give_up(Withdrawn.HANDED_BACK)

    def abandon(self) -> None:
        """Give up every job and write nothing: the engine broke on these jobs, so their attempts count."""
        self._give_up(Withdrawn.LEASE_LOST)

    def stop(self, timeout: float) -> bool:
        """End the engine's thread after its current step; False if that takes longer. Call it when no job runs.

        The engine is left open.
        """
        with self._lock:
            self._jobs.close()
            self._gate.close()
            if self._grace_timer is not None:
                self._grace_timer.cancel()
        self._judge.close()
        return self._engine_thread.stop(timeout)

    def _run(self, active: ActiveJob) -> bool:
        """Claim, generate, finish: beside other jobs, or alone if it must. False: the job was not touched."""
        waited = self._outage.wait(lambda: self._jobs.is_closed)
        if waited is Wait.STOPPED:
            return False
        if waited is Wait.IN_VAIN:
            self._put_off(active.job_id, self._outage.patience, "the engine's server is lost")
            return True
        for alone in (False, True):
            entry = self._gate.enter(alone=alone)
            if entry is Entry.CLOSED:
                return False
            if entry is Entry.TRY_LATER:
                self._put_off(
                    active.job_id,
                    self._gate.seconds_for_others,
                    "a job at its last attempt cannot run alone, because others do not end",
                )
                return True
            try:
                claim = self._claims.claim(active.job_id, alone=alone)
                if claim is Refusal.MUST_RUN_ALONE:
                    logger.info(
                        "a job whose earlier workers or servers were lost waits to run alone",
                        extra={"job_id": active.job_id},
                    )
                    continue
                if isinstance(claim, Refusal):
                    self._note(claim, active.job_id)
                else:
                    self._serve(active, claim)
                break
            finally:
                self._gate.leave()
        return True

    def _note(self, refusal: Refusal, job_id: int) -> None:
        """Count a job that was not claimed."""
        match refusal:
            case Refusal.NOTHING_TO_DO:
                self._counting.add(void_messages=1)
                logger.debug("nothing to do for this message", extra={"job_id": job_id})
            case Refusal.UNREADABLE:
                self._settlement.count(Fail(InvalidRequestError.code, refusal.value))
            case Refusal.FROM_CACHE:
                self._counting.add(from_cache=1)
            case _:
                logger.debug("%s", refusal.value, extra={"job_id": job_id})

    def _put_off(self, job_id: int, seconds: float, why: str) -> None:
        """Leave a job in the queue for a while; afterwards its message is sent again."""
        if not self._postponed.put_off(job_id, seconds):
            return  # the reconciler has sent its message meanwhile, as another worker may have room for it
        self._counting.add(postponed=1)
        logger.warning("%s; the job is tried again in %.0f s", why, seconds, extra={"job_id": job_id})

    def _serve(self, active: ActiveJob, claim: ClaimedJob) -> None:
        given_up = self._jobs.note_claim(active, claim)
        # Clocks of submitter and worker may differ, so the difference may be negative.
        waited = max(0.0, (claim.claimed_at - claim.queued_at).total_seconds())
        ending = given_up or self._generate(active, claim)
        is_last = claim.attempts >= claim.max_attempts
        decision = decide(ending, info=self._engine.info, waited_seconds=waited, is_last_attempt=is_last)
        try:
            decision = judged(decision, claim, self._judge)
        except ExhaustedError as error:
            self._on_broken(error)
            decision = Unfinished.RELEASE
        self._settlement.persist(claim, decision)

    def _generate(self, active: ActiveJob, claim: ClaimedJob) -> Ending:
        try:
            request = self._encoder.encode(claim, active.ending)
        except RequestError as error:
            active.settle(RequestFailed(error))  # without effect if the job was withdrawn meanwhile
        except (ExhaustedError, EngineBrokenError) as error:
            self._on_broken(error)  # it withdraws this job with all others
        else:
            if request is not None:
                self._engine_thread.submit(request, active.settle)
                if active.ending.done():  # withdrawn before the engine had the request: abort it now
                    self._engine_thread.abort(request.request_id)
        return active.ending.result()

    def _give_up(self, why: Withdrawn) -> None:
        with self._lock:
            self._gate.close()
            jobs = self._jobs.give_up(why)
        if jobs:
            logger.info("%s: %s", counted(len(jobs), "unfinished job"), why.value)
        for job in jobs:
            self._withdraw(job, why)

    def _withdraw(self, active: ActiveJob, why: Withdrawn) -> None:
        """End a job without waiting for the engine, which may be in a long step or hang.

        Settle first, then abort: this method aborts a request submitted before, ``_generate`` one submitted after.
        """
        active.settle(why)
        if active.claim is not None:
            self._engine_thread.abort(engine_request_id(active.job_id, active.claim.lease))

    def _cancel(self, job_id: int) -> None:
        try:
            self._database.transact(lambda c: batch_changes.cancel_job(c, job_id, now=datetime.now(UTC)))
        except HelixError as error:
            logger.warning("a revoked job could not be cancelled: %s", error, extra={"job_id": job_id})
