"""A worker's service on a bench: over a real database, with a real writer and the fake engine."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from helix_jobs.engine.fake_engine import FakeEngine
from helix_jobs.engine.fake_faults import FakeFaults
from helix_jobs.new_job import NewJob
from helix_jobs.storage import batches
from helix_jobs.storage.group_commit import GroupCommitWriter
from helix_jobs.storage.records import NewBatch, NewWorker
from helix_jobs.storage.schema import jobs, results
from helix_jobs.worker.gate import JobGate
from helix_jobs.worker.heartbeat import Heartbeat
from helix_jobs.worker.job_service import WorkerService
from helix_jobs.worker.request_encoder import RequestEncoder
from tests.worker_box import wait_until

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from helix_jobs.storage.answer_cache import AnswerSetup
    from helix_jobs.storage.database import Database

WORKER = NewWorker(id="me", hostname="h", pid=1, device="fake", target_model="fake-target", draft_model=None, slots=4)


class FakeTime:
    """Monotonic seconds that pass when they are told to. Whoever waits on a condition for seconds waits for these."""

    def __init__(self) -> None:
        self._now = 1000.0
        self._waiting: Counter[threading.Condition] = Counter()

    def __call__(self) -> float:
        return self._now

    @property
    def waiting(self) -> int:
        """How many threads wait; one that was woken and waits again does so all the time."""
        total = 0
        for condition in list(self._waiting):
            with condition:
                total += self._waiting[condition]
        return total

    def wait(self, condition: threading.Condition, _seconds: float | None) -> None:
        """Wait until the condition is notified or time has passed; the waiter looks at the clock again by itself."""
        self._waiting[condition] += 1
        assert condition.wait(20), "nobody lets time pass"
        self._waiting[condition] -= 1

    def advance(self, seconds: float) -> None:
        """Let time pass, and wake whoever waits for it."""
        self._now += seconds
        for condition in list(self._waiting):
            with condition:
                condition.notify_all()


class Bench:
    """A service over a database with some jobs. Time at its gate passes when it is told to."""

    def __init__(
        self,
        database: Database,
        *,
        encode_patience: float = 60.0,
        setup: AnswerSetup | None = None,
        **faults: str,
    ) -> None:
        self.database = database
        self.time = FakeTime()
        self.gate = JobGate(300.0, self.time, self.time.wait)
        self.engine = FakeEngine(max_batch_size=4, faults=FakeFaults(**faults))
        self.writer = GroupCommitWriter(database)
        self.broken: list[BaseException] = []
        self.when_broken: Callable[[], object] = lambda: None
        self.service = WorkerService(
            database,
            self.engine,
            self.writer,
            worker_id="me",
            grace=30.0,
            on_broken=self._on_broken,
            gate=self.gate,
            encoder=RequestEncoder(self.engine, patience=encode_patience, pause=min(1.0, encode_patience)),
            setup=lambda: setup,
        )
        self.heartbeat = Heartbeat(database, WORKER, self.service)
        self.heartbeat.register()
        self.service.start()
        self.pool = ThreadPoolExecutor(16)

    def _on_broken(self, error: BaseException) -> None:
        self.broken.append(error)
        self.when_broken()

    def add(self, *prompts: str) -> list[int]:
        requests = [{"prompt": prompt, "sampling": {}, "seed": 1, "metadata": {}} for prompt in prompts]
        return self.add_raw(*requests)

    def add_raw(self, *requests: dict[str, Any]) -> list[int]:
        now = datetime.now(UTC)
        with self.database.write() as c:
            name = f"b-{len(self.rows())}"
            batches.create_batch(c, NewBatch(id=name, created_at=now))
            lines = [NewJob(line=n, custom_id=None, request=r) for n, r in enumerate(requests, 1)]
            batches.insert_jobs(c, name, lines, now)
            batches.seal_batch(c, name, len(requests), "digest")
            return list(c.execute(select(jobs.c.id).where(jobs.c.batch_id == name).order_by(jobs.c.line)).scalars())

    def rows(self) -> dict[int, Any]:
        with self.database.read() as c:
            return {row.id: row for row in c.execute(select(jobs))}

    def result_ids(self) -> list[int]:
        with self.database.read() as c:
            return sorted(c.execute(select(results.c.job_id)).scalars())

    def run(self, *job_ids: int) -> list[Any]:
        return [self.pool.submit(self.service.run_job, job_id) for job_id in job_ids]

    def run_all(self, *job_ids: int) -> None:
        """Bring them to their ends."""
        assert all(future.result(20) for future in self.run(*job_ids))

    def wait_running(self, *job_ids: int) -> None:
        wait_until(lambda: all(map(self.service.leases().get, job_ids)), "the jobs do not start")

    def close(self) -> None:
        self.service.hand_back()
        self.engine.close()
        wait_until(lambda: self.service.active_count == 0, "the jobs do not end", 20)
        self.pool.shutdown()
        assert self.service.stop(20)
        assert self.writer.close(20)
