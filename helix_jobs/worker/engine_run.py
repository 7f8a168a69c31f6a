"""Run: a stretch of the engine's work, and whom the engine's thread tells about runs, growing answers and their end."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from helix_jobs.forecast.step_costs import StepCosts

if TYPE_CHECKING:
    from collections.abc import Iterable

    from helix_jobs.engine.partial_output import PartialOutput
    from helix_jobs.engine.protocol import EngineCounters
    from helix_jobs.engine.request import GenerationResult
    from helix_jobs.errors import RequestError


@dataclass(slots=True)
class Run:
    """One batched speculative run under way: a stretch in which the engine is busy.

    It is cut at a minute, and a worker's first at ten seconds.

    Attributes:
        counters: The engine's totals when it began.
        began: Monotonic time.
        joules: What its device had taken by then; None where nobody counts.
        costs: What its steps took.
        row_id: Its row's id; None until the row is written, and for good if that failed.
    """

    counters: EngineCounters
    began: float
    joules: float | None = None
    row_id: int | None = None
    costs: StepCosts = field(default_factory=StepCosts)


class RunRecorder(Protocol):
    """Records runs; called by the engine thread alone and never waits."""

    def begin(self, counters: EngineCounters) -> Run:
        """A run begins with these totals."""

    def end(self, run: Run, counters: EngineCounters, *, jobs_finished: int, idle_seconds: float) -> None:
        """A run has ended, ``idle_seconds`` ago."""


class GrowthReader(Protocol):
    """Is shown answers while they grow; called by the engine thread alone and never waits."""

    def take(self, partials: Iterable[PartialOutput]) -> None:
        """These answers have grown."""

    def forget(self, request_id: str) -> None:
        """A request with a ``stream`` has ended."""


@dataclass(frozen=True, slots=True)
class Generated:
    """The engine has ended a request in this run."""

    result: GenerationResult
    run: Run


@dataclass(frozen=True, slots=True)
class RequestFailed:
    """The engine could not serve a request."""

    error: RequestError
