"""StructuredBench: what a schema costs and saves. With and without it take turns, round by round."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.bench.extraction import ENDLESS_RECORDS, ONE_RECORD, extraction_messages
from helix_jobs.bench.machine import Machine
from helix_jobs.bench.measure import Measurement, measure
from helix_jobs.bench.model_shelf import ModelShelf
from helix_jobs.bench.modes import OFF, Mode
from helix_jobs.engine.request import Request
from helix_jobs.engine.sampling_params import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from helix_jobs.bench.plan import BenchPlan
    from helix_jobs.engine.constraint import Constraint
    from helix_jobs.engine.request import EncodedRequest

# Requests of a round at batch 1; larger batches take two of their own size, so that slots are filled anew.
_FEWEST_REQUESTS: Final = 8
_HALF_BATCH: Final = 32
_WARM_UP_TOKENS: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """The same work in two forms.

    Attributes:
        name: ``extraction`` or ``half``.
        batch_size: Batch slots.
        speculation: The mode's label.
        plain: Rounds without a schema.
        held: Rounds with one, for all rows or for half of them.
    """

    name: str
    batch_size: int
    speculation: str
    plain: tuple[Measurement, ...]
    held: tuple[Measurement, ...]

    @property
    def rate_ratio(self) -> float | None:
        """Output tokens a second with a schema over those without, the median of the rounds' ratios."""
        pairs = zip(self.plain, self.held, strict=False)
        ratios = [held.output_tokens_per_second / plain.output_tokens_per_second for plain, held in pairs]
        return median(ratios) if ratios else None

    @property
    def time_ratio(self) -> float | None:
        """Wall time without a schema over that with one, the median of the rounds' ratios."""
        ratios = [plain.seconds / held.seconds for plain, held in zip(self.plain, self.held, strict=False)]
        return median(ratios) if ratios else None


@dataclass(frozen=True, slots=True, kw_only=True)
class StructuredReport:
    """All pairs, and where they were measured."""

    command: str
    started_at: str
    machine: Machine
    device: str
    dtype: str
    target: str
    pairs: tuple[Pair, ...]

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        ratios = [{"rate_ratio": pair.rate_ratio, "time_ratio": pair.time_ratio} for pair in self.pairs]
        return {**asdict(self), "ratios": ratios}


class StructuredBench:
    """One call of ``helix bench structured``. ``report`` may be called at any time.

    Args:
        plan: The models, batch sizes and rounds; its first mode is measured, and ``off`` for the half batch.
        on_progress: Receives one line for each thing that is done.
    """

    def __init__(self, plan: BenchPlan, on_progress: Callable[[str], None]) -> None:
        self._plan = plan
        self._progress = on_progress
        self._started_at = datetime.now(UTC).isoformat(timespec="seconds")
        self._shelf = ModelShelf(plan, on_progress)
        self._pairs: list[Pair] = []

    def run(self) -> None:
        """Measure extraction at each batch size, and then the batch in which half the rows have a schema.

        Raises:
            HelixError: The engine cannot run the mode.
        """
        mode, limit = self._plan.modes[0], self._plan.max_tokens or 160
        for batch_size in self._plan.batch_sizes:
            count = max(_FEWEST_REQUESTS, 2 * batch_size)
            params = SamplingParams(max_tokens=limit)
            plain = self._requests([None] * count, params, mode, batch_size)
            held = self._requests([ONE_RECORD] * count, params, mode, batch_size)
            self._measure("extraction", mode, batch_size, plain, held)
        # All rows run to their limit, so that both batches have the same number of tokens in each step.
        params, off = SamplingParams(max_tokens=limit, ignore_eos=True), Mode(OFF)
        plain = self._requests([None] * _HALF_BATCH, params, off, _HALF_BATCH)
        half = self._requests([None, ENDLESS_RECORDS] * (_HALF_BATCH // 2), params, off, _HALF_BATCH)
        self._measure("half", off, _HALF_BATCH, plain, half)

    def report(self) -> StructuredReport:
        """The results so far."""
        return StructuredReport(
            command=self._plan.command,
            started_at=self._started_at,
            machine=Machine.here(),
            device=self._shelf.device_name,
            dtype=self._shelf.dtype_name,
            target=self._plan.target,
            pairs=tuple(self._pairs),
        )

    def _requests(
        self, constraints: Sequence[Constraint | None], params: SamplingParams, mode: Mode, batch_size: int
    ) -> list[EncodedRequest]:
        """The reports as encoded requests; each constraint is compiled once, before anything is measured."""
        made = [
            Request(
                request_id=str(number),
                messages=extraction_messages(number),
                sampling_params=params,
                seed=number,
                constraint=constraint,
            )
            for number, constraint in enumerate(constraints)
        ]
        encoded = self._shelf.encoded([replace(request, constraint=None) for request in made])
        engine = self._shelf.engine(mode, batch_size, encoded)
        try:
            # Any prompt will do: the engine compiles a constraint where it encodes a request.
            any_request = replace(made[0], messages=None, prompt="{")
            grammars = {one: engine.encode(replace(any_request, constraint=one)).grammar for one in set(constraints)}
        finally:
            engine.close()
        return [
            replace(request, grammar=grammars[constraint])
            for request, constraint in zip(encoded, constraints, strict=True)
        ]

    def _measure(
        self, name: str, mode: Mode, batch_size: int, plain: list[EncodedRequest], held: list[EncodedRequest]
    ) -> None:
        rounds: tuple[list[Measurement], list[Measurement]] = ([], [])
        place = len(self._pairs)
        for number in range(self._plan.repeat + 1):
            what = f"round {number} of {self._plan.repeat}" if number else "warming up"
            sides = list(zip(rounds, (plain, held), strict=True))
            # The side that comes first takes turns, or whatever speeds or slows the second would count as the schema's.
            for kept, requests in sides if number % 2 == 0 else reversed(sides):
                form = "with a schema" if requests is held else "plain"
                self._progress(f"{name}, batch {batch_size}, {what}: {form}")
                engine = self._shelf.engine(mode, batch_size, requests)
                try:
                    measured = measure(engine, requests if number else _shortened(requests), self._shelf.device)
                finally:
                    engine.close()
                if number:
                    kept.append(measured.measurement)
            if number:
                pair = Pair(
                    name=name,
                    batch_size=batch_size,
                    speculation=mode.label,
                    plain=tuple(rounds[0]),
                    held=tuple(rounds[1]),
                )
                self._pairs[place:] = [pair]


def _shortened(requests: list[EncodedRequest]) -> list[EncodedRequest]:
    return [
        replace(request, sampling_params=replace(request.sampling_params, max_tokens=_WARM_UP_TOKENS))
        for request in requests
    ]
