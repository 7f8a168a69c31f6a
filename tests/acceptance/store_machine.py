"""StoreMachine: every order of calls hypothesis can think of, made to the real store and to a plain model of it.

A call may also be rolled back first, or made twice because the answer to its commit was lost. After each step all rows
are compared with the model, and what must hold whatever the model says is checked by itself.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule
from sqlalchemy import delete, select

from helix_jobs.storage import batch_changes, claims, pausing, publishing, retries
from helix_jobs.storage import status_counters as counters
from helix_jobs.storage.answer_cache import AnswerSetup, leave_to_twin, take_answers
from helix_jobs.storage.batch_changes import EndedJob
from helix_jobs.storage.batches import create_batch, delete_batch, insert_jobs, seal_batch
from helix_jobs.storage.chosen_retries import queue_chosen
from helix_jobs.storage.records import NewBatch
from helix_jobs.storage.refusals import StoredAnswer, refuse_stored
from helix_jobs.storage.schema import batches, jobs, results, workers
from helix_jobs.storage.states import JobState
from helix_jobs.storage.workers import heartbeat, register_worker, stop_worker
from tests.acceptance.compared_store import NAMES, ComparedStore
from tests.acceptance.made_up_jobs import answers_of, end_claim, new_job
from tests.acceptance.store_model import Claim, Job, setup_of
from tests.store_helpers import DIGEST, worker

if TYPE_CHECKING:
    from sqlalchemy import Connection


MAX_LINE: Final = 2**31 - 1
# "rolled back": the transaction fails once before it succeeds. "unanswered": it is committed, nobody learns of it, and
# so it is made again.
COMMITS: Final = st.sampled_from(["plain", "plain", "rolled back", "unanswered"])
PICKS: Final = st.integers(0, 40)
WORKERS: Final = st.sampled_from(NAMES)
ENDS: Final = st.sampled_from(["succeeded", "failed", "released", "given back", "refused", "not accepted"])
CODES: Final = st.sampled_from(["engine_error", "out_of_memory"])


class StoreMachine(ComparedStore):
    """The calls that may be made, and by whom."""

    @initialize(count=st.integers(1, 3), commit=COMMITS)
    def begin_with_a_batch(self, count: int, commit: str) -> None:
        """Most that can go wrong needs jobs."""
        with self.database.write() as c:
            c.execute(delete(batches))
            c.execute(delete(workers))
        self.create(None, commit)
        self.add_lines(0, 1, count, sealed=True, commit=commit)

    # -- a person submits

    @rule(key=st.sampled_from([None, None, "k1"]), commit=COMMITS)
    def create(self, key: str | None, commit: str) -> None:
        now = self._now()
        new = NewBatch(id=f"b-{len(self.batch_ids)}", created_at=now, idempotency_key=key)

        def call(c: Connection) -> tuple[str, bool]:
            stored = create_batch(c, new)
            return stored.id, stored.reused

        # Without a key nothing tells a repeated call from another batch, and nobody repeats it.
        self._both(call, lambda: self.model.create_batch(new.id, key), commit if key else "plain")
        self.batch_ids.append(new.id)

    @precondition(lambda self: self.batch_ids)
    @rule(which=PICKS, first=st.integers(1, 3), count=st.integers(1, 3), sealed=st.booleans(), commit=COMMITS)
    def add_lines(self, which: int, first: int, count: int, *, sealed: bool, commit: str) -> None:
        batch_id = _pick(self.batch_ids, which)
        lines = range(first, first + count)
        new, now = [new_job(line) for line in lines], self._now()
        self._both(
            lambda c: insert_jobs(c, batch_id, new, now),
            lambda: self._insert(batch_id, lines, now),
            commit,
        )
        if sealed and batch_id in self.model.batches:
            self._seal(batch_id, len(self.model.of(batch_id)), commit)

    def _insert(self, batch_id: str, lines: range, now: datetime) -> int:
        """Called by ``_both`` after the store, whose ids the model takes over."""
        inserted = self.model.insert_jobs(batch_id, lines)
        known = {job.line for job in self.model.of(batch_id)}
        with self.database.read() as c:
            query = select(jobs.c.id, jobs.c.line).where(jobs.c.batch_id == batch_id).order_by(jobs.c.id)
            for row in c.execute(query):
                if row.line not in known:
                    new = new_job(row.line)
                    job = Job(row.id, batch_id, row.line, new.priority, new.max_attempts, now)
                    job.answer_key = new.answer_key
                    self.model.adopt(job)
                    self.job_ids.append(row.id)
        return inserted

    @precondition(lambda self: any(batch.total is None for batch in self.model.batches.values()))
    @rule(which=PICKS, wrong_by=st.sampled_from([0, 0, 1]), discard=st.booleans(), commit=COMMITS)
    def end_submission(self, which: int, wrong_by: int, *, discard: bool, commit: str) -> None:
        batch_id = _pick(self.batch_ids, which)
        total = len(self.model.of(batch_id)) + wrong_by
        if discard:
            self._both(lambda c: delete_batch(c, batch_id), lambda: self.model.delete_batch(batch_id), commit)
        else:
            self._seal(batch_id, total, commit)

    def _seal(self, batch_id: str, total: int, commit: str) -> None:
        self._both(
            lambda c: seal_batch(c, batch_id, total, DIGEST),
            lambda: self.model.seal_batch(batch_id, total),
            commit,
        )

    # -- the reconciler publishes, in two steps between which anything may happen

    @rule(limit=st.integers(1, 5))
    def send(self, limit: int) -> None:
        with self.database.read() as c:
            self.sent = [job.id for job in publishing.publishable(c, limit)]

    @precondition(lambda self: self.sent)
    @rule(way=st.sampled_from(["mark", "mark", "unmark", "republish"]), back=st.sampled_from([0, 4000]), commit=COMMITS)
    def mark(self, way: str, back: int, commit: str) -> None:
        ids, now = self.sent, self._now()
        before = now - timedelta(seconds=back)
        model = self.model
        calls = {
            "mark": (lambda c: publishing.mark_published(c, ids, now), lambda: model.mark_published(ids, now)),
            "unmark": (lambda c: publishing.unmark_published(c, ids), lambda: model.mark_published(ids, None)),
            "republish": (lambda c: publishing.republish_unseen(c, before), lambda: model.republish_unseen(before)),
        }
        self._both(*calls[way], commit)

    # -- workers: a message is delivered, once or again, to whomever; a claim ends, in time or long after

    @precondition(lambda self: self.job_ids)
    @rule(which=PICKS, name=WORKERS, commit=COMMITS)
    def deliver(self, which: int, name: str, commit: str) -> None:
        """A message for whatever job: waiting, running, ended, deleted."""
        self._deliver(_pick(self.job_ids, which), name, commit)

    @precondition(lambda self: self.model.publishable())
    @rule(which=PICKS, name=WORKERS, commit=COMMITS)
    def deliver_what_waits(self, which: int, name: str, commit: str) -> None:
        self._deliver(_pick(self.model.publishable(), which), name, commit)

    def _deliver(self, job_id: int, name: str, commit: str, *, may_take: bool = False) -> bool:
        now, setup = self._now(), setup_of(name) if may_take else None

        def call(c: Connection) -> tuple[int, int] | None:
            of = None if setup is None else AnswerSetup(setup, setup, setup)
            claimed = claims.claim(c, job_id, worker_id=name, now=now, setup=of)
            return None if claimed is None else (claimed.lease, claimed.attempts)

        claimed = self._both(call, lambda: self.model.claim(job_id, name, now, setup), commit)
        if claimed is not None:
            self.claims.append(Claim(job_id, claimed[0], name, self.model.jobs[job_id].tries))
        return claimed is not None

    # -- stored answers

    @precondition(lambda self: self.job_ids)
    @rule(which=PICKS, name=WORKERS, commit=COMMITS)
    def deliver_to_one_who_may_take(self, which: int, name: str, commit: str) -> None:
        """A message for whatever job, to a worker that knows of stored answers and of equal jobs."""
        job_id = _pick(self.job_ids, which)
        if not self._deliver(job_id, name, commit, may_take=True) and not self._take_answers({job_id}, name, commit):
            self._both(
                lambda c: leave_to_twin(c, job_id),
                lambda: self.model.leave_to_twin(job_id),
                "plain" if commit == "unanswered" else commit,
            )

    @precondition(lambda self: self.job_ids)
    @rule(which=st.lists(PICKS, min_size=1, max_size=6), name=WORKERS, commit=COMMITS)
    def take(self, which: list[int], name: str, commit: str) -> None:
        """Before jobs are published: waiting, running, ended, deleted ones."""
        self._take_answers({_pick(self.job_ids, number) for number in which}, name, commit)

    def _take_answers(self, ids: set[int], name: str, commit: str) -> set[int]:
        now, setup = self._now(), setup_of(name)
        taken: set[int] = set()

        def call(c: Connection) -> set[int]:
            found = take_answers(c, ids, AnswerSetup(setup, setup, setup), now)
            taken.update(found)
            return found

        self._both(call, lambda: self._take(ids, setup, now), commit)
        return taken

    def _take(self, ids: set[int], setup: str, now: datetime) -> set[int]:
        """Of several answers that a job may take, the model follows the store's choice."""
        with self.database.read() as c:
            query = select(results.c.job_id, results.c.from_cache).where(results.c.job_id.in_(ids))
            chosen = {row.job_id: row.from_cache for row in c.execute(query)}
        found = {job_id: self.model.sources(self.model.jobs[job_id], setup) for job_id in ids & self.model.jobs.keys()}
        found = {job_id: sources for job_id, sources in found.items() if sources}
        for job_id, sources in found.items():
            assert chosen.get(job_id) in sources
            self.model.take(self.model.jobs[job_id], sources[chosen[job_id]], now)
        return set(found)

    @precondition(lambda self: self.claims)
    @rule(which=st.lists(PICKS, min_size=1, max_size=3), end=ENDS, code=CODES, commit=COMMITS)
    def end(self, which: list[int], end: str, code: str, commit: str) -> None:
        """Several in one transaction, as the group commit writer does; any claim ever made, the latest first."""
        self._end_all([_pick(self.claims, -1 - number) for number in which], end, code, commit)

    @precondition(lambda self: self._stale())
    @rule(which=PICKS, end=ENDS, code=CODES, commit=COMMITS)
    def write_late(self, which: int, end: str, code: str, commit: str) -> None:
        """A worker ends a job that meanwhile runs under another lease."""
        before = self.model.snapshot()
        self._end_all([_pick(self._stale(), which)], end, code, commit)
        assert self.model.jobs == before

    def _stale(self) -> list[Claim]:
        running = {job.id: job.lease for job in self.model.jobs.values() if job.state == "running"}
        return [claim for claim in self.claims if running.get(claim.job_id, claim.lease) != claim.lease]

    def _end_all(self, ended: list[Claim], end: str, code: str, commit: str) -> None:
        now = self._now()
        self._both(
            lambda c: [end_claim(c, claim, end, code, now) for claim in ended],
            lambda: [self._end(claim, end, code, now) for claim in ended],
            commit,
        )

    def _end(self, claim: Claim, end: str, code: str, now: datetime) -> bool:
        if end == "released":
            return self.model.release(claim, now)
        if end == "given back":
            return self.model.give_back(claim, now)
        if end == "refused":
            return self.model.refuse(claim, now)
        if end == "not accepted":
            return self.model.finish_not_accepted(claim, answers_of(claim), now)
        if end == "failed":
            return self.model.finish(claim, end, code, (), now)
        return self.model.finish(claim, end, None, answers_of(claim), now)

    @rule(name=WORKERS, act=st.sampled_from(["register", "beat", "beat", "stop"]), commit=COMMITS)
    def live(self, name: str, act: str, commit: str) -> None:
        now = self._now()
        model = self.model
        calls = {
            "register": (
                lambda c: register_worker(c, worker(name), now),
                lambda: model.register_worker(name, now),
            ),
            "beat": (lambda c: heartbeat(c, name, now), lambda: model.heartbeat(name, now)),
            "stop": (lambda c: stop_worker(c, name, now), lambda: model.stop_worker(name)),
        }
        self._both(*calls[act], commit)
        self.heartbeats.append(now)

    @precondition(lambda self: any(job.state == "running" for job in self.model.jobs.values()))
    @rule(which=PICKS, way=st.sampled_from(["lost", "cancelled", "handed back"]), name=WORKERS, commit=COMMITS)
    def take_over(self, which: int, way: str, name: str, commit: str) -> None:
        """A job leaves its holder in one of three ways and is delivered again at once, be it to the same worker."""
        job = _pick([job for job in self.model.jobs.values() if job.state == "running"], which)
        if way == "lost":
            self.reclaim(str(job.worker_id), "dead", 0, commit)
        elif way == "cancelled":
            self._cancel_job(job.id, commit)
        else:
            self._end_all([Claim(job.id, job.lease, str(job.worker_id))], "released", "", commit)
        self._retry(job.batch_id, commit)
        self._deliver(job.id, name, commit)

    @rule(name=WORKERS, judged=st.sampled_from(["dead", "now", "before"]), which=PICKS, commit=COMMITS)
    def reclaim(self, name: str, judged: str, which: int, commit: str) -> None:
        """A process known dead, a heartbeat seen just now, or one seen at some time before."""
        known = self.model.workers.get(name)
        seen = {"dead": None, "now": known and known.heartbeat, "before": _pick(self.heartbeats, which)}[judged]
        now = self._now()
        self._both(
            lambda c: retries.reclaim(c, name, now, heartbeat=seen),
            lambda: self.model.reclaim(name, seen, now),
            commit,
        )

    # -- a person changes their mind

    @precondition(lambda self: self.job_ids)
    @rule(which=PICKS, one_job=st.booleans(), commit=COMMITS)
    def cancel(self, which: int, *, one_job: bool, commit: str) -> None:
        if one_job:
            self._cancel_job(_pick(self.job_ids, which), commit)
            return
        batch_id, now = _pick(self.batch_ids, which), self._now()
        self._both(lambda c: _cancel_batch(c, batch_id, now), lambda: self.model.cancel_batch(batch_id, now), commit)

    def _cancel_job(self, job_id: int, commit: str) -> None:
        now = self._now()
        self._both(
            lambda c: batch_changes.cancel_job(c, job_id, now=now), lambda: self.model.cancel_job(job_id, now), commit
        )

    @precondition(lambda self: self.batch_ids)
    @rule(which=PICKS, resumed=st.booleans(), commit=COMMITS)
    def pause(self, which: int, *, resumed: bool, commit: str) -> None:
        """A pause, or its end; a second call finds nothing to do."""
        batch_id, now = _pick(self.batch_ids, which), self._now()
        calls = {
            True: (lambda c: pausing.resume_batch(c, batch_id), lambda: self.model.resume_batch(batch_id)),
            False: (lambda c: pausing.pause_batch(c, batch_id, now=now), lambda: self.model.pause_batch(batch_id)),
        }
        self._both(*calls[resumed], commit)

    @precondition(lambda self: self.batch_ids)
    @rule(which=PICKS, commit=COMMITS)
    def retry(self, which: int, commit: str) -> None:
        self._retry(_pick(self.batch_ids, which), commit)

    def _retry(self, batch_id: str, commit: str) -> None:
        now = self._now()
        self._both(
            lambda c: batch_changes.retry_lines(c, batch_changes.begin_retry(c, batch_id), 0, MAX_LINE, now=now) or 0,
            lambda: self.model.retry_batch(batch_id, now),
            commit,
        )

    @precondition(lambda self: any(job.finished_at for job in self.model.jobs.values()))
    @rule(which=PICKS, commit=COMMITS)
    def retry_one(self, which: int, commit: str) -> None:
        """One job that has ended, as a condition chooses it: its answer goes, or its failure is forgotten."""
        job = _pick([job for job in self.model.jobs.values() if job.finished_at is not None], which)
        assert job.finished_at is not None
        chosen, batch_id, now = EndedJob(job.id, JobState(job.state), job.finished_at), job.batch_id, self._now()
        self._both(
            lambda c: queue_chosen(c, batch_changes.begin_retry(c, batch_id), [chosen], now),
            lambda: self.model.retry_chosen(chosen, batch_id, now),
            commit,
        )

    @rule()
    def look_at_answers(self) -> None:
        for job in self.model.jobs.values():
            if job.state == "succeeded" and job.finished_at is not None:
                self.seen.append((job.batch_id, job.id, job.finished_at))

    @precondition(lambda self: self.seen)
    @rule(which=PICKS, max_tries=st.integers(1, 3), commit=COMMITS)
    def refuse_what_was_seen(self, which: int, max_tries: int, commit: str) -> None:
        """The latest first; it may be gone, or its batch cancelled or deleted."""
        batch_id, job_id, seen = _pick(self.seen, -1 - which)
        now, answers = self._now(), [StoredAnswer(job_id, seen)]
        self._both(
            lambda c: refuse_stored(c, batch_id, answers, max_tries=max_tries, reason="no", now=now),
            lambda: self.model.refuse_stored(batch_id, job_id, seen, max_tries, now),
            commit,
        )

    @rule(seconds=st.sampled_from([0, 1, 31, 3600, -3600]))
    def time_passes(self, seconds: int) -> None:
        """The clock may also be set back. Meanwhile somebody has the counters rebuilt."""
        self._offset += timedelta(seconds=seconds)
        if not seconds:
            with self.database.write() as c:
                for batch_id in self.model.batches:
                    counters.recount(c, batch_id)


def _cancel_batch(c: Connection, batch_id: str, now: datetime) -> int:
    """All of a batch in one transaction; the product does it in steps."""
    begun = batch_changes.begin_cancel(c, batch_id, now=now)
    return 0 if begun is None else batch_changes.cancel_lines(c, begun, 0, MAX_LINE) or 0


def _pick(choices: list[Any], number: int) -> Any:
    return choices[number % len(choices)]
