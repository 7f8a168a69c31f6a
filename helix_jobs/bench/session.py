"""BenchSession: run a plan. Modes and peers take turns, round by round, so that drift of the machine affects all alike.

Trade-off: absolute figures of a shared machine mean little; ratios taken in one session mean much. So everything to
compare runs in one process tree, alternately. Ratios are taken round by round, and then their median.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from helix_jobs.bench.floor import matrix_product_floor
from helix_jobs.bench.machine import Machine
from helix_jobs.bench.measure import measure
from helix_jobs.bench.model_shelf import ModelShelf
from helix_jobs.bench.peer import READS_GGUF, PeerError
from helix_jobs.bench.peer_models import start_peer
from helix_jobs.bench.report import BenchReport, CaseReport, Comparison, PeerReport, PeerRound

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from helix_jobs.bench.measure import Measurement
    from helix_jobs.bench.peer import PeerInfo, PeerProcess, PeerRun
    from helix_jobs.bench.plan import BenchPlan
    from helix_jobs.bench.report import Case
    from helix_jobs.engine.request import EncodedRequest

_WARM_UP_TOKENS: Final = 16
# Threads of the side that has just finished keep spinning for a moment.
_SETTLE_SECONDS: Final = 0.3

_Outputs = tuple[tuple[int, ...], ...]


@dataclass(slots=True)
class _CaseState:
    warm_up: Measurement | None = None
    rounds: list[Measurement] = field(default_factory=list)
    floors: list[float] = field(default_factory=list)
    outputs: _Outputs = ()


@dataclass(slots=True)
class _PeerState:
    process: PeerProcess | None = None
    info: PeerInfo | None = None
    warm_up: PeerRound | None = None
    rounds: list[PeerRound] = field(default_factory=list)
    outputs: _Outputs = ()
    error: PeerError | None = None


class BenchSession:
    """One call of ``helix bench``.

    ``report`` may be called at any time: after an error or an interruption it holds the measurements so far.

    Args:
        plan: The measurements to make.
        on_progress: Receives one line for each thing that is done.
    """

    def __init__(self, plan: BenchPlan, on_progress: Callable[[str], None]) -> None:
        self._plan = plan
        self._progress = on_progress
        self._started_at = datetime.now(UTC)
        self._shelf = ModelShelf(plan, on_progress)
        self._cases: dict[Case, _CaseState] = {}
        # (name, batch size, variant) -> the peer's state
        self._peers: dict[tuple[str, int, str], _PeerState] = {}
        self._complete = False

    def run(self) -> None:
        """Measure everything.

        Raises:
            InputError: The workload's prompts are bad or do not fit.
            HelixError: The engine cannot run a mode; earlier measurements are in the report.
        """
        for batch_size in self._plan.batch_sizes:
            variants = self._plan.kind.variants if self._plan.prompts is None else ("",)
            requests = {variant: self._shelf.requests(batch_size, variant) for variant in variants}
            with ExitStack() as stack:
                everything = [request for made in requests.values() for request in made]
                started = {
                    name: self._start(name, python, batch_size, everything, stack) for name, python in self._plan.peers
                }
                for variant in variants:
                    self._measure(batch_size, variant, requests[variant], started)
        self._complete = True

    def report(self) -> BenchReport:
        """The results so far."""
        plan = self._plan
        return BenchReport(
            command=plan.command,
            started_at=self._started_at.isoformat(timespec="seconds").replace("+00:00", "Z"),
            machine=Machine.here(),
            device=self._shelf.device_name,
            dtype=self._shelf.dtype_name,
            kernels=self._shelf.decoder.kernels,
            target=plan.target,
            drafts=plan.drafts,
            workload=plan.workload_json(),
            cases=tuple(
                CaseReport(case, state.warm_up, tuple(state.rounds), tuple(state.floors))
                for case, state in self._cases.items()
            ),
            peers=tuple(_peer_report(key, state) for key, state in self._peers.items()),
            against_peers=self._against_peers(),
            against_off=self._against_off(),
            complete=self._complete,
        )

    def _start(
        self, name: str, python: str, batch_size: int, requests: Sequence[EncodedRequest], stack: ExitStack
    ) -> _PeerState:
        self._progress(f"loading {name} for batches of {batch_size}")
        state = _PeerState()
        try:
            state.process, job = start_peer(
                name,
                python,
                self._plan,
                self._shelf,
                batch_size=batch_size,
                requests=requests,
                on_progress=self._progress,
            )
            stack.callback(state.process.close)
            state.info = state.process.load(job)
        except PeerError as error:
            self._lose(name, state, error)
        return state

    def _measure(
        self, batch_size: int, variant: str, requests: tuple[EncodedRequest, ...], started: dict[str, _PeerState]
    ) -> None:
        cases = self._plan.cases(batch_size, variant)
        peers = {name: replace(state) for name, state in started.items()}
        for name, state in peers.items():
            state.rounds = []
            self._peers[name, batch_size, variant] = state
        place = f"batch {batch_size}{f', {variant}' if variant else ''}"
        short = [_shortened(request) for request in requests[:batch_size]]
        for case in cases:
            self._cases[case] = _CaseState()
            self._progress(f"{place}: warming up {case.mode.label}")
            self._run_case(case, short, requests, is_warm_up=True)
        for name, state in peers.items():
            self._run_peer(name, state, short, f"{place}: warming up {name}", is_warm_up=True)
        for number in range(1, self._plan.repeat + 1):
            turn = f"{place}, round {number} of {self._plan.repeat}"
            for case in cases:
                self._progress(f"{turn}: {case.mode.label}")
                self._run_case(case, requests, requests)
            for name, state in peers.items():
                self._run_peer(name, state, requests, f"{turn}: {name}")

    def _run_case(
        self,
        case: Case,
        requests: Sequence[EncodedRequest],
        workload: Sequence[EncodedRequest],
        *,
        is_warm_up: bool = False,
    ) -> None:
        """Run requests through an engine that is made for the whole workload."""
        state = self._cases[case]
        engine = self._shelf.engine(case.mode, case.batch_size, workload)
        try:
            self._settle()
            run = measure(engine, requests, self._shelf.device)
        finally:
            engine.close()
        if is_warm_up:
            state.warm_up = run.measurement
            return
        if not state.rounds:
            state.outputs = run.outputs
        state.rounds.append(run.measurement)
        step = run.measurement.decode_step
        if step is not None:
            state.floors.append(matrix_product_floor(self._shelf.decoder, step.num_tokens))

    def _run_peer(
        self,
        name: str,
        state: _PeerState,
        requests: Sequence[EncodedRequest],
        message: str,
        *,
        is_warm_up: bool = False,
    ) -> None:
        if state.process is None or state.error is not None:
            return
        self._progress(message)
        self._settle()
        try:
            run = state.process.run(requests, sorted(self._shelf.models.eos_token_ids))
        except PeerError as error:
            self._lose(name, state, error)
            return
        if is_warm_up:
            state.warm_up = _peer_round(run)
            return
        if not state.rounds:
            state.outputs = run.outputs
        state.rounds.append(_peer_round(run))

    def _settle(self) -> None:
        if self._plan.peers:
            time.sleep(_SETTLE_SECONDS)

    def _lose(self, name: str, state: _PeerState, error: PeerError) -> None:
        state.error = error
        self._progress(f"{name} is out: {error}")

    def _against_peers(self) -> tuple[Comparison, ...]:
        return tuple(
            _compare(case, ours, name, peer.rounds, None if name in READS_GGUF else peer.outputs)
            for (name, batch_size, variant), peer in self._peers.items()
            for case, ours in self._cases.items()
            if (case.batch_size, case.variant) == (batch_size, variant) and ours.rounds and _emitted(peer.rounds)
        )

    def _against_off(self) -> tuple[Comparison, ...]:
        return tuple(
            _compare(case, ours, "off", off.rounds, off.outputs)
            for baseline, off in self._cases.items()
            for case, ours in self._cases.items()
            if baseline.mode.is_off
            and not case.mode.is_off
            and (case.batch_size, case.variant) == (baseline.batch_size, baseline.variant)
            and ours.rounds
            and _emitted(off.rounds)
        )


def _emitted(rounds: Sequence[Measurement | PeerRound]) -> bool:
    """Whether there is a rate to compare with."""
    return any(round_.output_tokens for round_ in rounds)


def _compare(
    case: Case,
    ours: _CaseState,
    against: str,
    theirs: Sequence[Measurement | PeerRound],
    outputs: _Outputs | None,
) -> Comparison:
    ratios = tuple(
        mine.output_tokens_per_second / other.output_tokens_per_second
        for mine, other in zip(ours.rounds, theirs, strict=False)
        if other.output_tokens
    )
    equal = None
    if outputs is not None:
        equal = sum(a == b for a, b in zip(ours.outputs, outputs, strict=True)) / len(outputs)
    return Comparison(case, against, ratios, equal)


def _shortened(request: EncodedRequest) -> EncodedRequest:
    params = request.sampling_params
    return replace(request, sampling_params=replace(params, max_tokens=min(params.max_tokens, _WARM_UP_TOKENS)))


def _peer_round(run: PeerRun) -> PeerRound:
    return PeerRound(run.seconds, run.output_tokens, run.output_tokens_per_second, run.peak_memory_bytes)


def _peer_report(key: tuple[str, int, str], state: _PeerState) -> PeerReport:
    name, batch_size, variant = key
    return PeerReport(
        name=name,
        batch_size=batch_size,
        variant=variant,
        version=None if state.info is None else state.info.version,
        settings={} if state.info is None else state.info.settings,
        load_seconds=None if state.info is None else state.info.load_seconds,
        warm_up=state.warm_up,
        rounds=tuple(state.rounds),
        error=None if state.error is None else str(state.error),
        error_tail="" if state.error is None else state.error.tail,
    )
