"""How a job ends, and how the ending changes its row: a pure decision, persisted by ``Settlement``."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from helix_jobs.engine.request import FinishReason
from helix_jobs.errors import EngineError
from helix_jobs.storage.records import ResultRow
from helix_jobs.worker.engine_thread import Generated, RequestFailed

if TYPE_CHECKING:
    from helix_jobs.engine.protocol import EngineInfo
    from helix_jobs.worker.engine_thread import Run


class Withdrawn(Enum):
    """Endings that do not come from the engine."""

    HANDED_BACK = "handed back"
    LEASE_LOST = "lease lost"


Ending = Generated | RequestFailed | Withdrawn


@dataclass(frozen=True, slots=True)
class Succeed:
    """Write the result row."""

    row: ResultRow
    run: Run


@dataclass(frozen=True, slots=True)
class Fail:
    """Write the error."""

    code: str
    message: str


class Unfinished(Enum):
    """Endings without a result."""

    RELEASE = "release"  # back to the queue, the attempt not counted
    DROP = "drop"  # another worker has it, or it was cancelled


Decision = Succeed | Fail | Unfinished


def decide(ending: Ending, *, info: EngineInfo, waited_seconds: float) -> Decision:
    """Decide how a job's ending changes its row.

    Args:
        ending: How the job ended.
        info: The engine, for the result row.
        waited_seconds: From queueing to claim; the engine adds its own waiting.
    """
    match ending:
        case Withdrawn.LEASE_LOST:
            return Unfinished.DROP
        case Withdrawn.HANDED_BACK:
            return Unfinished.RELEASE
        case RequestFailed(error):
            return Fail(error.code, str(error))
        case Generated(result, run):
            if result.error is not None:
                return Fail(result.error.code, str(result.error))
            if result.finish_reason is None or result.finish_reason is FinishReason.ABORTED:
                return Unfinished.RELEASE
            seconds = result.total_seconds
            row = ResultRow(
                output_text=result.output_text,
                finish_reason=result.finish_reason.value,
                **result.tokens.tokens(),
                queue_seconds=waited_seconds + result.queue_seconds,
                ttft_seconds=result.ttft_seconds,
                decode_seconds=result.decode_seconds,
                total_seconds=seconds,
                tokens_per_second=result.completion_tokens / seconds if seconds > 0 else None,
                acceptance_rate=result.acceptance_rate,
                mean_acceptance_length=result.mean_acceptance_length,
                target_model=info.target_model,
                draft_model=info.draft_model,
                device=info.device,
                dtype=info.dtype,
            )
            return Succeed(row, run)


def outcome(decision: Decision) -> str:
    """The decision in words, for the log."""
    match decision:
        case Succeed():
            return "succeeded"
        case Fail():
            return "failed"
        case _:
            return Withdrawn.HANDED_BACK.value


def refused_by_database(error: Exception) -> Fail:
    """Fail a job whose result the database refuses. The error's text is left out: it quotes the row."""
    return Fail(EngineError.code, f"the database refused the result ({type(error).__name__}); see the worker's log")
