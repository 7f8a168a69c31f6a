"""The submitting process is killed half-way; the same file under the same key gives the exact set of jobs."""

from __future__ import annotations

import itertools
import json
import random
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.acceptance.faults.oracle import Accepted, line_of
from tests.acceptance.faults.plan import Plan
from tests.acceptance.faults.scenario import Outcome, Size, scenario
from tests.worker_box import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.acceptance.faults.installation import Installation

# Where it dies and at which passing: rows are stored a thousand at a time, and so are messages.
DEATHS = (("inserting", 2), ("publishing", 2), ("inserting", 1), ("sealing", 1), ("sealed", 1), ("published", 2))
# A submission that is not killed takes about so long.
RANDOM_SECONDS = 3.0


@scenario(
    "submit killed in mid-insert and mid-publish",
    quick=Size(jobs=1_100, faults=2),
    quick_on=("sqlite",),
    full=Size(jobs=6_600, faults=12),
)
def killed(installation: Installation, size: Size) -> Outcome:
    """Half of the deaths come at a boundary, the others at a random moment; a worker drains meanwhile."""
    quick = installation.fork_server is not None
    dice = random.Random(5)
    batches = 1 if quick else size.faults // 4
    installation.start(fake_step_seconds="0")
    accepted, deaths = [], itertools.cycle(DEATHS)
    for number in range(batches):
        submission = _Submission.write(installation, f"key-{number}", size.jobs // batches)
        for fault in range(size.faults // batches):
            if quick or fault % 2 == 0:
                boundary, passing = next(deaths)
                submission.die_at(boundary, passing)
            else:
                submission.die_after(dice.uniform(0.0, RANDOM_SECONDS))
        accepted.append(submission.finish())
    installation.wait_done(*accepted, timeout=installation.patience + size.jobs / 20)
    with installation.client() as client:
        assert len(client.list(limit=100)) == batches, "a submission under its key left a second batch"
    return Outcome(accepted=accepted, faults=size.faults)


@dataclass
class _Submission:
    """One file and its idempotency key."""

    installation: Installation
    file: Path
    key: str
    prompts: tuple[str, ...]

    @classmethod
    def write(cls, installation: Installation, key: str, count: int) -> _Submission:
        prompts = tuple(f"{key} line {n}" for n in range(count))
        file = installation.temporary / f"{key}.jsonl"
        lines = (f"{json.dumps({**line_of(prompt, n), 'custom_id': f'c-{n}'})}\n" for n, prompt in enumerate(prompts))
        file.write_text("".join(lines), encoding="utf-8")
        return cls(installation, file, key, prompts)

    def die_at(self, boundary: str, passing: int) -> None:
        """Die there, unless an earlier submission got further: then there is nothing left to insert or to publish."""
        process = self.installation.start_submit(Plan(die_at=boundary, after=passing), *self._arguments)
        assert process.wait() in (-signal.SIGKILL, 0), process.log

    def die_after(self, seconds: float) -> None:
        process = self.installation.start_submit(Plan(), *self._arguments)
        time.sleep(seconds)
        process.kill()

    def finish(self) -> Accepted:
        """Submit it at last, and once more, which must change nothing."""
        ids = set()
        for _ in range(2):
            process = self.installation.start_submit(Plan(), *self._arguments, "--json")
            wait_until(lambda p=process: p.process.poll() is not None, lambda p=process: f"submit hangs: {p.log}")
            assert process.process.poll() == 0, process.log
            with self.installation.client() as client:
                ids.add(client.list(1)[0].id)
        (batch_id,) = ids
        return Accepted(batch_id, self.prompts)

    @property
    def _arguments(self) -> tuple[str, ...]:
        return (str(self.file), "--idempotency-key", self.key)
