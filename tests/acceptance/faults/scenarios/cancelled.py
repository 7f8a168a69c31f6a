"""Cancel and retry, of jobs and of whole batches, at any moment while workers drain them."""

from __future__ import annotations

import dataclasses
import random
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.acceptance.faults.oracle import Accepted
from tests.acceptance.faults.scenario import Outcome, Size, scenario
from tests.worker_box import wait_until

if TYPE_CHECKING:
    from helix_jobs import HelixClient
    from tests.acceptance.faults.installation import Installation

HANG = "never-ends"
MAYBE_CANCELLED = frozenset({"cancelled"})
PROBE_JOBS = 4
SLOTS = 32
SINGLE_JOBS = 5


@dataclass
class Person:
    """Someone who cannot decide, and notes what does not hold."""

    installation: Installation
    client: HelixClient
    dice: random.Random
    patience: float
    broken: list[str] = field(default_factory=list)
    probes: list[Accepted] = field(default_factory=list)
    freed_seconds: list[float] = field(default_factory=list)
    slowest_cancel: float = 0.0
    most_cancelled: int = 0

    def act(self, batch: Accepted) -> None:
        """One change of mind."""
        self.dice.choice((self.cancel_batch, self.cancel_some_jobs, self.cancel_and_retry, self.do_both_at_once))(batch)

    def cancel_batch(self, batch: Accepted) -> None:
        """Nothing of it may wait or run afterwards, and its slots must serve others at once."""
        began = time.monotonic()
        cancelled = self.client.cancel(batch.batch_id)
        self.slowest_cancel = max(self.slowest_cancel, time.monotonic() - began)
        self.most_cancelled = max(self.most_cancelled, cancelled)
        status = self.client.status(batch.batch_id)
        if not status.done or status.finished != len(batch.prompts):
            self.broken.append(f"a cancelled batch is {dict(status.counts)}")
        if cancelled > status.counts["cancelled"]:
            self.broken.append(f"{cancelled} jobs were cancelled and {status.counts['cancelled']} are")
        self.probe(began)
        self.retry(batch)

    def cancel_some_jobs(self, batch: Accepted) -> None:
        rows = self.installation.rows(batch.batch_id)
        for row in self.dice.sample(rows, min(SINGLE_JOBS, len(rows))):
            self.client.cancel(row.id)

    def cancel_and_retry(self, batch: Accepted) -> None:
        """At once: workers are still busy with what is queued again."""
        self.client.cancel(batch.batch_id)
        self.retry(batch)

    def do_both_at_once(self, batch: Accepted) -> None:
        with ThreadPoolExecutor(2) as two:
            for done in [two.submit(self.client.cancel, batch.batch_id), two.submit(self.client.retry, batch.batch_id)]:
                done.result()
        self.retry(batch)

    def retry(self, batch: Accepted) -> None:
        self.client.retry(batch.batch_id)
        if (left := self.client.status(batch.batch_id).counts["cancelled"]) > 0:
            self.broken.append(f"{left} jobs stay cancelled after a retry")

    def probe(self, since: float) -> None:
        """Have a few other jobs done, and note how long after ``since`` they were."""
        other = self.installation.accept(PROBE_JOBS, priority=9)
        self.installation.wait_done(other, timeout=self.patience)
        self.freed_seconds.append(time.monotonic() - since)
        self.probes.append(other)


@scenario(
    "cancelled and retried at random moments",
    quick=Size(jobs=200, faults=4),
    quick_on=("sqlite",),
    full=Size(jobs=100_000, faults=12),
)
def cancelled(installation: Installation, size: Size) -> Outcome:
    """Two workers drain a batch that is cancelled and retried again and again; in the end all of it is answered.

    Another batch is left cancelled. A third one never ends and fills every slot until it is cancelled.
    """
    quick = installation.fork_server is not None
    dice = random.Random(12)
    with installation.client() as client:
        patience = installation.patience + size.jobs / 50
        person = Person(installation, client, dice, patience)
        for n in range(2):
            installation.start(host=f"host-{n}", fake_hang=HANG, max_batch_size=str(SLOTS))
        endless = _cancel_what_fills_the_slots(person)
        batch = installation.accept(size.jobs, words=2)
        for _ in range(size.faults):
            time.sleep(dice.uniform(0.0, 0.1 if quick else 3.0))
            person.act(batch)
        client.retry(batch.batch_id)
        left = dataclasses.replace(installation.accept(size.jobs // 10, words=2, priority=5), allowed=MAYBE_CANCELLED)
        wait_until(lambda: client.status(left.batch_id).finished > 0, "nothing of the second batch is answered")
        client.cancel(left.batch_id)
        installation.wait_done(batch, left, timeout=patience)
        _wait_drained(installation, patience)
    return Outcome(
        accepted=[batch, left, endless, *person.probes],
        faults=size.faults + 2,
        recoveries=person.freed_seconds,
        note=(
            f"recovery: until other jobs had the slots; {person.most_cancelled:,} jobs cancelled in "
            f"{person.slowest_cancel:.1f} s at most"
        ),
        broken=tuple(person.broken),
    )


def _cancel_what_fills_the_slots(person: Person) -> Accepted:
    installation = person.installation
    prompts = tuple(f"{HANG} {n}" for n in range(4 * SLOTS))
    endless = Accepted(installation.submit(*prompts), prompts, allowed=MAYBE_CANCELLED)
    wait_until(lambda: installation.states(endless.batch_id).get("running", 0) >= 2 * SLOTS, "the slots are not filled")
    running = next(row for row in installation.rows(endless.batch_id) if row.state == "running")
    began = time.monotonic()
    person.client.cancel(running.id)
    person.client.cancel(endless.batch_id)
    person.probe(began)
    return endless


def _wait_drained(installation: Installation, patience: float) -> None:
    """Every retry sends messages anew, up to the window; those of jobs that have ended are dropped one by one."""
    publisher = installation.publisher()
    wait_until(lambda: publisher.depth() == 0, "messages stay in the queue", patience)
    publisher.close()
