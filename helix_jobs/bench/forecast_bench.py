"""ForecastBench: batches of many shapes are forecast, run by a real worker, and compared with the forecast."""

from __future__ import annotations

import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.bench.forecast_shapes import SHAPES
from helix_jobs.bench.machine import Machine
from helix_jobs.bench.processes import start_process
from helix_jobs.broker.publisher import EmbeddedBroker
from helix_jobs.client.client import HelixClient
from helix_jobs.client.line_defaults import LineDefaults
from helix_jobs.client.plan import plan_input
from helix_jobs.database_url import sqlite_url
from helix_jobs.engine.loading.open_engine import load_engine
from helix_jobs.errors import HelixError
from helix_jobs.storage.database import Database
from helix_jobs.storage.migration import upgrade

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from helix_jobs.bench.forecast_shapes import EngineShape, ForecastShape
    from helix_jobs.engine.protocol import EngineProtocol
    from helix_jobs.forecast.forecast import Forecast
    from helix_jobs.settings import Settings
    from helix_jobs.storage.records import BatchStatus

_POLL_SECONDS: Final = 0.1
_READY: Final = "Ready."
_MOST_SECONDS: Final = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ForecastBenchPlan:
    """What to measure.

    Attributes:
        command: The command line.
        targets: The models.
        shapes: So many of the shapes, of each model.
        rows: Rows of a batch whose share is one.
        trial_seconds: How long a trial may take.
    """

    command: str
    targets: tuple[str, ...]
    shapes: int
    rows: int
    trial_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Guess:
    """One forecast of a batch, against the truth; all in seconds since the batch began.

    Attributes:
        elapsed: When it was made.
        median: What it said.
        low: The lower end of its range.
        high: The upper end.
        truth: What came.
    """

    elapsed: float
    median: float
    low: float
    high: float
    truth: float

    @classmethod
    def of(cls, found: Forecast, elapsed: float, truth: float) -> Guess:
        """From a forecast of the rest."""
        return cls(
            elapsed=elapsed,
            median=elapsed + found.median,
            low=elapsed + found.low,
            high=elapsed + found.high,
            truth=truth,
        )

    @property
    def is_inside(self) -> bool:
        """Whether the truth lies in the range."""
        return self.low <= self.truth <= self.high

    @property
    def error(self) -> float:
        """How far off it was, as a share of the truth; too long is positive."""
        return self.median / self.truth - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ForecastCase:
    """One batch.

    Attributes:
        half: The forecast at half time; None where the batch ended before one could be made.
    """

    name: str
    target: str
    rows: int
    sampled: int
    trial_seconds: float
    start: Guess
    half: Guess | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """How good the forecasts of one moment were.

    Attributes:
        batches: How many there are.
        inside: The share of them whose truth lies in the range.
        error: The median of their absolute errors.
        bias: The median of their errors.
    """

    batches: int
    inside: float
    error: float
    bias: float

    @classmethod
    def of(cls, guesses: Sequence[Guess]) -> Calibration | None:
        """Of these forecasts; None without one."""
        if not guesses:
            return None
        return cls(
            batches=len(guesses),
            inside=sum(one.is_inside for one in guesses) / len(guesses),
            error=median(abs(one.error) for one in guesses),
            bias=median(one.error for one in guesses),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ForecastReport:
    """All batches, and where they were run."""

    command: str
    started_at: str
    machine: Machine
    cases: tuple[ForecastCase, ...]
    start: Calibration | None
    half: Calibration | None

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self)


class ForecastBench:
    """One call of ``helix bench forecast``. ``report`` may be called at any time.

    Args:
        settings: The worker's; models, draft, batch size, database and broker are replaced.
        plan: What to measure.
        say: Receives one line for each thing that is done.
    """

    def __init__(self, settings: Settings, plan: ForecastBenchPlan, say: Callable[[str], None]) -> None:
        self._settings = settings
        self._plan = plan
        self._say = say
        self._started_at = datetime.now(UTC).isoformat(timespec="seconds")
        self._cases: list[ForecastCase] = []

    def report(self) -> ForecastReport:
        """The results so far."""
        return ForecastReport(
            command=self._plan.command,
            started_at=self._started_at,
            machine=Machine.here(),
            cases=tuple(self._cases),
            start=Calibration.of([case.start for case in self._cases]),
            half=Calibration.of([case.half for case in self._cases if case.half is not None]),
        )

    def run(self) -> None:
        """Measure.

        Raises:
            HelixError: A model cannot be served, or a batch does not end.
        """
        chosen = SHAPES[: self._plan.shapes]
        for target in self._plan.targets:
            for engine in dict.fromkeys(shape.engine for shape in chosen):
                self._run_engine(target, engine, [shape for shape in chosen if shape.engine == engine])

    def _run_engine(self, target: str, engine: EngineShape, shapes: Sequence[ForecastShape]) -> None:
        """Run the batches of one engine by one worker, which has a database and a broker of its own."""
        with ExitStack() as stack:
            # The path is short, because a socket's path has a length limit.
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hx-bench-")))
            broker = EmbeddedBroker(directory)
            broker.start()
            stack.callback(broker.stop)
            settings = replace(
                self._settings,
                target_model=target,
                draft_model=engine.draft,
                max_batch_size=engine.slots,
                hours=None,
                redis_url=broker.url,
                database_url=sqlite_url(directory / "helix.db"),
                lock_dir=directory / "locks",
            )
            database = Database(settings.database_url)
            stack.callback(database.dispose)
            upgrade(database)
            self._say(f"{target} with draft {engine.draft} and {engine.slots} slots: loading")
            planner = load_engine(settings)
            stack.callback(planner.close)
            start_process(stack, settings, "worker", _READY, directory)
            client = stack.enter_context(HelixClient(settings))
            self._warm_up(client)
            for shape in shapes:
                self._run_batch(client, planner, target, shape)

    def _warm_up(self, client: HelixClient) -> None:
        batch = client.submit([{"prompt": "Count to ten.", "max_tokens": 4}]).batch_id
        client.wait(batch, timeout=_MOST_SECONDS, poll=_POLL_SECONDS)

    def _run_batch(self, client: HelixClient, planner: EngineProtocol, target: str, shape: ForecastShape) -> None:
        rows = shape.rows(self._plan.rows, seed=SHAPES.index(shape) + 1)
        self._say(f"{target}, {shape.name}: planning {len(rows)} rows")
        planned = plan_input(client.settings, planner, rows, LineDefaults(), trial_seconds=self._plan.trial_seconds)
        self._say(f"{target}, {shape.name}: running, {planned.forecast.median:.0f} s expected")
        batch = client.submit(rows).batch_id
        half = self._half_time(client, batch)
        status = client.wait(batch, timeout=_MOST_SECONDS, poll=_POLL_SECONDS)
        if not status.done or status.started_at is None or status.finished_at is None:
            raise HelixError(f"the batch {shape.name!r} did not end within an hour; give fewer --rows")
        truth = (status.finished_at - status.started_at).total_seconds()
        guess = None
        if half is not None:
            found, read_at = half
            guess = Guess.of(found, (read_at - status.started_at).total_seconds(), truth)
        self._cases.append(
            ForecastCase(
                name=shape.name,
                target=target,
                rows=len(rows),
                sampled=planned.sampled,
                trial_seconds=planned.trial.seconds,
                start=Guess.of(planned.forecast, 0.0, truth),
                half=guess,
            )
        )

    def _half_time(self, client: HelixClient, batch: str) -> tuple[Forecast, datetime] | None:
        """What is forecast when half of the jobs have ended, and when."""
        deadline = time.monotonic() + _MOST_SECONDS
        while time.monotonic() < deadline:
            status: BatchStatus = client.status(batch)
            if status.done:
                return None
            if status.finished * 2 >= (status.total or 0):
                read_at = datetime.now(UTC)
                outlook = client.outlook(batch)
                return None if outlook is None else (outlook.forecast, read_at)
            time.sleep(_POLL_SECONDS)
        return None
