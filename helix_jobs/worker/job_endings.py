"""How a job ends, and how the ending changes its row: a pure decision, persisted by ``Settlement``."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

from helix_jobs.engine.request import FinishReason
from helix_jobs.errors import EngineError, ErrorCode
from helix_jobs.storage.records import ResultRow
from helix_jobs.worker.engine_run import Generated, RequestFailed

if TYPE_CHECKING:
    from helix_jobs.engine.protocol import EngineInfo
    from helix_jobs.engine.request import GenerationResult
    from helix_jobs.worker.engine_run import Run


_SERVER_LOST: Final = (
    "the server that computes the answers (HELIX_ENDPOINT_URL) was lost each time it computed this job, the last time "
    "with nothing else of this worker; look at that server's log, then retry by hand"
)


class Withdrawn(Enum):
    """Endings that do not come from the engine."""

    HANDED_BACK = "handed back"
    LEASE_LOST = "lease lost"


Ending = Generated | RequestFailed | Withdrawn


@dataclass(frozen=True, slots=True)
class Succeed:
    """Write the result rows, one for each choice."""

    answers: tuple[ResultRow, ...]
    run: Run


@dataclass(frozen=True, slots=True)
class Fail:
    """Write the error."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Refuse:
    """Put the job back into the queue: its acceptance rule refused the answer, and tries are left."""


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Fail the job as ``not_accepted`` and keep its answers: its acceptance rule refused the last one too."""

    answers: tuple[ResultRow, ...]
    run: Run
    reason: str


class Unfinished(Enum):
    """Endings without a result."""

    RELEASE = "release"  # back to the queue, the attempt not counted
    GIVE_BACK = "give back"  # back to the queue, the attempt counted
    DROP = "drop"  # another worker has it, or it was cancelled


Decision = Succeed | Fail | Refuse | GiveUp | Unfinished


def decide(ending: Ending, *, info: EngineInfo, waited_seconds: float, is_last_attempt: bool = False) -> Decision:
    """Decide how a job's ending changes its row.

    Args:
        ending: How the job ended.
        info: The engine, for the result row.
        waited_seconds: From queueing to claim; the engine adds its own waiting.
        is_last_attempt: The job has no further attempt after this one.
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
                return _of_aborted(result, is_last_attempt=is_last_attempt)
            return Succeed(tuple(_row(choice, info, waited_seconds) for choice in result.choices), run)


def _of_aborted(result: GenerationResult, *, is_last_attempt: bool) -> Fail | Unfinished:
    if not result.lost_with_server:
        return Unfinished.RELEASE
    return Fail(ErrorCode.SERVER_LOST, _SERVER_LOST) if is_last_attempt else Unfinished.GIVE_BACK


def _row(answer: GenerationResult, info: EngineInfo, waited_seconds: float) -> ResultRow:
    """The row of one choice. The first one's tokens include the prompt's."""
    assert answer.finish_reason is not None, "an answer without an error has an end"
    seconds = answer.total_seconds
    counts_prompt = answer.choice == 0
    return ResultRow(
        choice=answer.choice,
        output_text=answer.output_text,
        finish_reason=answer.finish_reason.value,
        prompt_tokens=answer.prompt_tokens if counts_prompt else 0,
        cached_prompt_tokens=answer.cached_prompt_tokens if counts_prompt else 0,
        completion_tokens=answer.completion_tokens,
        draft_tokens=answer.draft_tokens,
        accepted_tokens=answer.accepted_tokens,
        queue_seconds=waited_seconds + answer.queue_seconds,
        ttft_seconds=answer.ttft_seconds,
        decode_seconds=answer.decode_seconds,
        total_seconds=seconds,
        tokens_per_second=answer.completion_tokens / seconds if seconds > 0 else None,
        acceptance_rate=answer.acceptance_rate,
        mean_acceptance_length=answer.mean_acceptance_length,
        # Who reads the answer wants to know what wrote it: the adapter, by the name that chose it.
        target_model=answer.adapter or info.target_model,
        draft_model=info.draft_model,
        device=info.device,
        dtype=info.dtypes,
        is_valid=answer.is_valid,
        dropped_prompt_tokens=answer.dropped_prompt_tokens,
        cumulative_logprob=answer.cumulative_logprob,
        logprobs=None if answer.logprobs is None else answer.logprobs.to_bytes(),
        prompt_logprobs=None if answer.prompt_logprobs is None else answer.prompt_logprobs.to_bytes(),
        scores=answer.scores,
        reasoning_text=answer.reasoning_text,
        reasoning_tokens=answer.reasoning_tokens,
        tool_calls=answer.tool_calls,
    )


def outcome(decision: Decision) -> str:
    """The decision in words, for the log."""
    match decision:
        case Succeed():
            return "succeeded"
        case Fail() | GiveUp():
            return "failed"
        case Refuse():
            return "answer refused"
        case _:
            return Withdrawn.HANDED_BACK.value


def refused_by_database(error: Exception) -> Fail:
    """Fail a job whose result the database refuses. The error's text is left out: it quotes the row."""
    return Fail(EngineError.code, f"the database refused the result ({type(error).__name__}); see the worker's log")
