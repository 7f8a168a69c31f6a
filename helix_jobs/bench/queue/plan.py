"""QueuePlan: the measurements of one call of ``helix bench queue``."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

# The fake engine emits a drafted token and three more in each step (see FakeEngine).
TOKENS_PER_STEP: Final = 4
_SEED: Final = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuePlan:
    """Sizes, services and the speed of the fake engine.

    Attributes:
        command: The command line, for the report.
        jobs: Jobs of the batch that is drained, and of the batch that is cancelled.
        workers: Worker processes.
        batch_size: Batch slots of each worker.
        step_ms: Duration of the fake engine's step; 0 is the null engine.
        steps: Fewest and most steps of a job, drawn evenly with a fixed seed.
        database_url: A Postgres server's URL, on which a database is made and dropped; None means SQLite.
        celery: Measure Celery alone as well, with empty tasks on the same broker.
    """

    command: str
    jobs: int
    workers: int = 1
    batch_size: int = 32
    step_ms: float = 0.0
    steps: tuple[int, int] = (1, 1)
    database_url: str | None = None
    celery: bool = True

    @property
    def engine_is_null(self) -> bool:
        """Whether the engine takes no time; its idle time then means nothing."""
        return self.step_ms == 0

    def lines(self) -> Iterator[bytes]:
        """The input file, line by line."""
        chance = random.Random(_SEED)  # noqa: S311  (a workload, not a secret)
        fewest, most = self.steps
        for number in range(1, self.jobs + 1):
            tokens = TOKENS_PER_STEP * (fewest if fewest == most else chance.randint(fewest, most))
            line = {
                "custom_id": f"q-{number}",
                "prompt": f"In one sentence, what is the number {number} good for?",
                "max_tokens": tokens,
                "ignore_eos": True,
            }
            yield json.dumps(line).encode() + b"\n"

    def workload_json(self) -> dict[str, Any]:
        """The parameters, for programs."""
        return {
            "jobs": self.jobs,
            "workers": self.workers,
            "batch_size": self.batch_size,
            "step_ms": self.step_ms,
            "steps": list(self.steps),
        }
