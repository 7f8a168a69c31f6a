"""BenchReport: all results of a bench, for the terminal, the chart and the JSON file. Data and medians only."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from helix_jobs.bench.machine import Machine
    from helix_jobs.bench.measure import Measurement
    from helix_jobs.bench.modes import Mode

SCHEMA: Final = "helix-bench/1"


@dataclass(frozen=True, slots=True)
class Case:
    """The unit of measurement: a mode, at a batch size, over one variant of the workload ("" if it has only one)."""

    mode: Mode
    batch_size: int
    variant: str = ""


@dataclass(frozen=True, slots=True)
class CaseReport:
    """The rounds of one case.

    Attributes:
        case: The case that was measured.
        warm_up: A short run before the first round; it counts in no figure. None if the case never ran.
        rounds: One measurement a round, in order.
        floor_seconds: The matrix-product floor of the decode step, measured after each round; empty when no step only
            decoded.
    """

    case: Case
    warm_up: Measurement | None
    rounds: tuple[Measurement, ...]
    floor_seconds: tuple[float, ...]

    @property
    def tokens_per_second(self) -> float:
        """Median over the rounds."""
        return median([round_.output_tokens_per_second for round_ in self.rounds])

    @property
    def typical(self) -> Measurement:
        """The round with the median throughput (the lower of two in the middle)."""
        ordered = sorted(self.rounds, key=lambda round_: round_.output_tokens_per_second)
        return ordered[(len(ordered) - 1) // 2]

    @property
    def floor_share(self) -> float | None:
        """Floor divided by measured decode step, median over the rounds; 1 would mean matrix products alone."""
        steps = [round_.decode_step for round_ in self.rounds]
        pairs = zip(self.floor_seconds, (step for step in steps if step is not None), strict=False)
        shares = [floor / step.seconds for floor, step in pairs]
        return median(shares) if shares else None


@dataclass(frozen=True, slots=True)
class PeerRound:
    """One round of a peer."""

    seconds: float
    output_tokens: int
    output_tokens_per_second: float
    peak_memory_bytes: int


@dataclass(frozen=True, slots=True)
class PeerReport:
    """A peer at one batch size, over one variant of the workload.

    ``error`` says why there are no (more) rounds, with the end of the peer's standard error in ``error_tail``.
    """

    name: str
    batch_size: int
    variant: str
    version: str | None
    settings: dict[str, Any]
    load_seconds: float | None
    warm_up: PeerRound | None
    rounds: tuple[PeerRound, ...]
    error: str | None
    error_tail: str

    @property
    def tokens_per_second(self) -> float | None:
        """Median over the rounds; None without rounds."""
        return median([round_.output_tokens_per_second for round_ in self.rounds]) if self.rounds else None

    @property
    def peak_memory_bytes(self) -> int | None:
        """Most resident memory from the peer's start to its last round; None without rounds."""
        return max((round_.peak_memory_bytes for round_ in self.rounds), default=None)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One case compared with a peer (or with the same case without speculation): our tokens/s / their tokens/s.

    ``equal_outputs`` is the fraction of requests whose token ids were the same in the first round; None if the peer's
    weights are not the target's.
    """

    case: Case
    against: str
    ratios: tuple[float, ...]
    equal_outputs: float | None

    @property
    def ratio(self) -> float:
        """Median over the rounds."""
        return median(self.ratios)


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchReport:
    """One call of ``helix bench``.

    Attributes:
        command: The command line.
        started_at: UTC, ISO 8601.
        machine: The machine that it ran on.
        device: The device's name.
        dtype: The target's dtype.
        kernels: ``compiled``, ``torch`` or ``torch sdpa``.
        target: The target as spelt by the user.
        drafts: The drafts as spelt by the user.
        workload: Its name and parameters.
        cases: Cases in the order of modes within variants within batch sizes.
        peers: The peers' results.
        against_peers: Ratios to each of them.
        against_off: Ratios of each mode to the same case without speculation.
        complete: Whether every round was run; an interrupted bench reports the rounds it has.
    """

    command: str
    started_at: str
    machine: Machine
    device: str
    dtype: str
    kernels: str
    target: str
    drafts: tuple[str, ...]
    workload: dict[str, Any]
    cases: tuple[CaseReport, ...]
    peers: tuple[PeerReport, ...]
    against_peers: tuple[Comparison, ...]
    against_off: tuple[Comparison, ...]
    complete: bool

    def to_json(self) -> dict[str, Any]:
        """The report for programs. Keys are stable: added, never renamed."""
        return {
            "schema": SCHEMA,
            "command": self.command,
            "started_at": self.started_at,
            "complete": self.complete,
            "machine": asdict(self.machine),
            "device": self.device,
            "dtype": self.dtype,
            "kernels": self.kernels,
            "target": self.target,
            "drafts": list(self.drafts),
            "workload": self.workload,
            "cases": [_case_json(one) for one in self.cases],
            "peers": [{**asdict(one), "tokens_per_second": one.tokens_per_second} for one in self.peers],
            "against_peers": [_comparison_json(one) for one in self.against_peers],
            "against_off": [_comparison_json(one) for one in self.against_off],
        }


def _name(case: Case) -> dict[str, Any]:
    return {
        "mode": case.mode.label,
        "speculation": case.mode.speculation,
        "draft": case.mode.draft,
        "batch_size": case.batch_size,
        "variant": case.variant,
    }


def _case_json(one: CaseReport) -> dict[str, Any]:
    return {
        **_name(one.case),
        "tokens_per_second": one.tokens_per_second if one.rounds else None,
        "floor_share": one.floor_share,
        "floor_seconds": list(one.floor_seconds),
        "warm_up": None if one.warm_up is None else asdict(one.warm_up),
        "rounds": [asdict(round_) for round_ in one.rounds],
    }


def _comparison_json(one: Comparison) -> dict[str, Any]:
    return {
        **_name(one.case),
        "against": one.against,
        "ratio": one.ratio,
        "ratios": list(one.ratios),
        "equal_outputs": one.equal_outputs,
    }
