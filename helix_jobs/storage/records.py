"""Records that the storage functions take and return: frozen values, no SQL."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from helix_jobs.storage.process_identity import ProcessIdentity
from helix_jobs.storage.states import FINAL_STATES, BatchState, JobState
from helix_jobs.token_counts import TokenCounts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class NewBatch:
    """A batch about to be stored, still without jobs.

    Attributes:
        interactive: It is one request of a person who waits for its answer.
        brakes: When it is to pause by itself, as it is stored.
        deadline: When it is to be done.
    """

    id: str
    created_at: datetime
    name: str | None = None
    source: str | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    idempotency_key: str | None = None
    interactive: bool = False
    brakes: Mapping[str, Any] | None = None
    deadline: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredBatch:
    """A stored batch as its submitter sees it. ``total`` None: unsealed, its jobs are not published yet."""

    id: str
    total: int | None
    content_digest: str | None
    reused: bool


@dataclass(frozen=True, slots=True)
class PublishableJob:
    """A job whose message is to be sent."""

    id: int
    priority: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimedJob:
    """A job this worker holds.

    Attributes:
        lease: The fence. Each claim raises it by one; a finish or release must carry its claim's number, so a worker
            declared lost that comes back cannot overwrite its successor's result.
        attempts: Claims of this try so far, this one included, without those that were handed back.
        max_attempts: How many it may have.
        tries: Answers of this job that were refused or asked for again so far.
        priority: 0 to 9, higher runs first.
        interactive: A person waits for its answer.
    """

    id: int
    batch_id: str
    line: int
    request: Mapping[str, Any]
    lease: int
    attempts: int
    queued_at: datetime
    claimed_at: datetime
    max_attempts: int = 3
    tries: int = 0
    priority: int = 0
    interactive: bool = False


@dataclass(frozen=True, slots=True)
class FinishedJob:
    """The job to finish, with the worker and the lease that finish it.

    ``setup_key`` says what its answer depends on beside the request, if other jobs may have the answer, too.
    """

    job_id: int
    lease: int
    worker_id: str
    setup_key: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerDetails:
    """What a request may ask to know about an answer. ``ResultRow`` and ``JobResult`` extend it.

    Attributes:
        choice: 0 for the job's first answer. The prompt's tokens are those of the first answer; others have 0.
        is_valid: Whether the answer keeps its constraint whole; None without one.
        reasoning_text: What the model thought before the answer; None where it did not think apart.
        reasoning_tokens: The part of ``completion_tokens`` that it thought.
        tool_calls: The calls of tools in OpenAI's form.
        cumulative_logprob: Sum of the log probabilities of the answer's tokens.
        logprobs: Log probabilities of the answer's tokens, encoded.
        prompt_logprobs: Log probabilities of the prompt's tokens, encoded.
        scores: Option -> its scores, of a job that scores options.
        dropped_prompt_tokens: Tokens of the prompt that were cut away to make it fit.
        from_cache: The job that this answer was computed for; None where that is this job.
    """

    choice: int = 0
    is_valid: bool | None = None
    reasoning_text: str | None = None
    reasoning_tokens: int | None = None
    tool_calls: Sequence[Mapping[str, Any]] | None = None
    cumulative_logprob: float | None = None
    logprobs: bytes | None = None
    prompt_logprobs: bytes | None = None
    scores: Mapping[str, Any] | None = None
    dropped_prompt_tokens: int | None = None
    from_cache: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultRow(AnswerDetails):
    """One answer of a job, as stored in ``results`` beside job id, worker id and creation time."""

    output_text: str
    finish_reason: str
    prompt_tokens: int
    cached_prompt_tokens: int
    completion_tokens: int
    queue_seconds: float
    ttft_seconds: float | None
    decode_seconds: float
    total_seconds: float
    tokens_per_second: float | None
    draft_tokens: int
    accepted_tokens: int
    acceptance_rate: float | None
    mean_acceptance_length: float | None
    target_model: str
    draft_model: str | None
    device: str
    dtype: str
    run_id: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewWorker:
    """A worker about to take its first message.

    Attributes:
        boot_id: This and the next two fields: see ``ProcessIdentity``.
        setup: What its answers depend on: versions, digests of the models, kernels and so on; None where it is unknown.
    """

    id: str
    hostname: str
    pid: int
    device: str
    target_model: str
    draft_model: str | None
    slots: int
    boot_id: str | None = None
    pid_namespace: str | None = None
    process_started: str | None = None
    setup: Mapping[str, Any] | None = None

    @property
    def identity(self) -> ProcessIdentity:
        """The worker's process."""
        return ProcessIdentity(
            pid=self.pid, boot_id=self.boot_id, pid_namespace=self.pid_namespace, started=self.process_started
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker(NewWorker):
    """A row of ``workers``."""

    started_at: datetime
    heartbeat_at: datetime
    stopped_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunTotals(TokenCounts):
    """The totals of one run, written when it closes; ``forecast/step_costs.py`` writes its ``step_costs``."""

    steps: int = 0
    jobs_finished: int = 0
    mean_batch_size: float | None = None
    mean_depth: float | None = None
    peak_blocks: int | None = None
    tokens_per_second: float | None = None
    preemptions: int = 0
    depth_reasons: Mapping[str, int] = field(default_factory=dict)
    schedule_seconds: float = 0.0
    draft_seconds: float = 0.0
    target_seconds: float = 0.0
    attention_seconds: float | None = None
    verify_seconds: float = 0.0
    energy_joules: float | None = None
    step_costs: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Reclaimed:
    """The outcome of a reclaim of a lost worker's leases."""

    requeued: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchStatus(TokenCounts):
    """A batch at one moment; its tokens are those that were computed for its succeeded jobs.

    Attributes:
        total: Jobs of the batch; None while it is being submitted.
        counts: Jobs per state, every state present.
        error_counts: Failed jobs per error code.
        started_at: The earliest claim of a job that ended or runs.
        finished_at: The latest end; None until every job is in a final state.
        read_at: When this was read, for the rates of a batch that still runs.
        cut_off: Answers of succeeded jobs that max_tokens or the context cut off (finish reason ``length``).
        refused: Answers that the jobs' own acceptance rules refused, those of unfinished jobs included.
        paused_at: When somebody or a brake paused it; None while its jobs may begin.
        paused_why: Why a brake paused it.
        brakes: Its brakes, as they are stored.
        deadline: When it is to be done.
        deadline_told_at: When a worker said that it will probably be later; None if none has.
        from_cache: Succeeded jobs whose answer was one that was stored already.
    """

    id: str
    name: str | None
    source: str | None
    created_at: datetime
    cancelled_at: datetime | None
    total: int | None
    state: BatchState
    counts: Mapping[JobState, int]
    error_counts: Mapping[str, int]
    started_at: datetime | None
    finished_at: datetime | None
    read_at: datetime
    cut_off: int = 0
    refused: int = 0
    paused_at: datetime | None = None
    paused_why: str | None = None
    brakes: Mapping[str, Any] | None = None
    deadline: datetime | None = None
    deadline_told_at: datetime | None = None
    from_cache: int = 0

    @property
    def stored(self) -> int:
        """Jobs stored so far; equals ``total`` once the batch is sealed."""
        return sum(self.counts.values())

    @property
    def finished(self) -> int:
        """Jobs in a final state."""
        return sum(self.counts[state] for state in FINAL_STATES)

    @property
    def processed(self) -> int:
        """Jobs that a worker ended with an answer or an error; unlike ``finished``, without cancelled ones."""
        return self.counts[JobState.SUCCEEDED] + self.counts[JobState.FAILED]

    @property
    def done(self) -> bool:
        """Whether nothing is left to do: sealed, and every job in a final state."""
        return self.state in (BatchState.DONE, BatchState.CANCELLED)

    @property
    def elapsed_seconds(self) -> float | None:
        """From the first claim to the end, or to now; None before the first claim."""
        if self.started_at is None:
            return None
        return max(0.0, ((self.finished_at or self.read_at) - self.started_at).total_seconds())

    @property
    def tokens_per_second(self) -> float | None:
        """Completion tokens of succeeded jobs over the elapsed time."""
        elapsed = self.elapsed_seconds
        return self.completion_tokens / elapsed if elapsed else None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSummary:
    """A job without its request and its answer: enough to find and name it."""

    job_id: int
    line: int
    custom_id: str | None
    state: JobState
    priority: int
    attempts: int
    error_code: str | None
    tries: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class JobResult(AnswerDetails):
    """A job with one of its answers; every metric is None where there is no answer.

    A job of several choices has a ``JobResult`` for each.

    Attributes:
        tries: Answers that its own acceptance rule refused, or that were asked for again. The answer of a job that
            failed as ``not_accepted`` is the last of them.
    """

    job_id: int
    batch_id: str
    line: int
    custom_id: str | None
    state: JobState
    priority: int
    attempts: int
    request: Mapping[str, Any]
    queued_at: datetime
    claimed_at: datetime | None
    finished_at: datetime | None
    error_code: str | None
    error_message: str | None
    output_text: str | None
    finish_reason: str | None
    prompt_tokens: int | None
    cached_prompt_tokens: int | None
    completion_tokens: int | None
    queue_seconds: float | None
    ttft_seconds: float | None
    decode_seconds: float | None
    total_seconds: float | None
    tokens_per_second: float | None
    draft_tokens: int | None
    accepted_tokens: int | None
    acceptance_rate: float | None
    mean_acceptance_length: float | None
    target_model: str | None
    draft_model: str | None
    device: str | None
    dtype: str | None
    worker_id: str | None
    run_id: int | None
    tries: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseHolder:
    """A worker that is live or holds leases. Without a row, only its id is known.

    Attributes:
        identity: The worker's process.
        is_live: The worker neither stopped nor was declared lost.
        leases: Number of jobs that it runs.
        claimed_at: When the oldest of these jobs was claimed.
    """

    worker_id: str
    hostname: str | None = None
    pid: int | None = None
    identity: ProcessIdentity | None = None
    heartbeat_at: datetime | None = None
    is_live: bool = False
    leases: int = 0
    claimed_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueFigures:
    """The state of the whole queue, without jobs of batches that are still being submitted.

    Attributes:
        queued: Number of queued jobs.
        running: Number of jobs under a lease.
        ended: Outcome (``OUTCOMES``) -> number of jobs with it.
        oldest_queued_at: When the oldest queued job was queued; None when none is.
        oldest_claimed_at: When the oldest running job was claimed.
        oldest_heartbeat_at: The oldest of the last heartbeats of workers that are live or hold leases.
        live_workers: Number of workers that neither stopped nor were declared lost.
    """

    queued: int
    running: int
    ended: Mapping[str, int]
    oldest_queued_at: datetime | None
    oldest_claimed_at: datetime | None
    oldest_heartbeat_at: datetime | None
    live_workers: int
