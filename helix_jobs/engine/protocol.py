"""EngineProtocol: what a worker needs from an engine. The real engine and the fake one both satisfy it."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Protocol, Self

from helix_jobs.token_counts import TokenCounts

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from helix_jobs.engine.partial_output import PartialOutput
    from helix_jobs.engine.request import EncodedRequest, GenerationResult, Request


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """The loaded models, the device and the limits, for the banner, the ``workers`` row and every result row.

    Attributes:
        target_model: The target's name, as the user gave it.
        draft_model: The drafters, as results name them; None when nothing drafts.
        device: The device, described in words.
        dtype: Of the target's weights and activations; ``int8`` when its weights are quantised.
        overflows_float16: ``dtype`` is float32 because the target does not fit float16's range.
        is_reproducible: A request's answer does not depend on the rest of the batch.
        kernels: The kernels in use: ``compiled`` (for this machine), ``torch``, ``torch sdpa`` (fused attention), or
            ``compiled, attention torch`` where compiled kernels compute all but attention.
        speculation_depth: The fixed K of every step; 0 for no speculation, None when each step chooses.
        max_batch_size: Sequences that run at once.
        max_model_len: Prompt plus output tokens of a request at most.
        num_blocks: KV blocks in the pool.
        block_size: Tokens a block.
        kv_cache_bytes: Keys and values of target and draft together.
        chat: What a request may ask of a chat with the target, in words.
        adapters: Names of the adapters that requests may choose.
        kv_cache_dtype: ``int8`` for keys and values of 8 bits; ``auto`` for the target's own dtype.
        is_remote: A server of the user's computes; ``device`` names it. Blocks and cache are then its own affair.
        outage: Why the engine takes no requests at present; None while it does. All others then end as aborted.
    """

    target_model: str
    draft_model: str | None
    device: str
    dtype: str
    kernels: str
    speculation_depth: int | None
    max_batch_size: int
    max_model_len: int
    num_blocks: int
    block_size: int
    kv_cache_bytes: int
    chat: str
    overflows_float16: bool = False
    is_reproducible: bool = False
    adapters: tuple[str, ...] = ()
    kv_cache_dtype: str = "auto"
    is_remote: bool = False
    outage: str | None = None

    @property
    def dtypes(self) -> str:
        """``dtype``, and that of the cache where it is another; results say this, as both change answers."""
        return self.dtype if self.kv_cache_dtype == "auto" else f"{self.dtype}, KV {self.kv_cache_dtype}"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCounters(TokenCounts):
    """Running totals since the engine was built; a run's figures are the difference of two snapshots.

    ``prompt_tokens`` counts the prompts of admitted requests, once for all choices or scored options of a request.
    ``completion_tokens`` counts emitted tokens: none where options are scored, though the best one is the answer.

    Attributes:
        steps: Engine steps.
        sequence_steps: Sum over steps of the sequences in the step; divided by ``steps``, the mean batch size.
        decode_sequence_steps: The part of ``sequence_steps`` that decoded; ``draft_tokens`` over it is the mean depth.
        peak_blocks: Most KV blocks in use at once. The difference of two snapshots keeps the later peak.
        preemptions: How often a running sequence lost its blocks and was queued again.
        schedule_seconds: Time spent on scheduling.
        draft_seconds: Time spent on drafting, the choice of depths included.
        target_seconds: Time of the target's passes. On an asynchronous device, the time to start them.
        attention_seconds: The part of ``target_seconds`` in attention; 0 where it cannot be measured.
        verify_seconds: Time of sampling, verification and commit. On an asynchronous device, the wait for it as well.
        forced_tokens: The part of ``draft_tokens`` that a grammar forced.
        accepted_forced_tokens: The part of ``accepted_tokens`` that a grammar forced.
        depth_reasons: Number of steps for each reason of the adaptive depth, see ``Speculator.reasons``.
    """

    steps: int = 0
    sequence_steps: int = 0
    decode_sequence_steps: int = 0
    peak_blocks: int = 0
    preemptions: int = 0
    schedule_seconds: float = 0.0
    draft_seconds: float = 0.0
    target_seconds: float = 0.0
    attention_seconds: float = 0.0
    verify_seconds: float = 0.0
    forced_tokens: int = 0
    accepted_forced_tokens: int = 0
    depth_reasons: Mapping[str, int] = field(default_factory=dict)

    def __sub__(self, earlier: Self) -> Self:
        """The counts since ``earlier``, and the reasons that occurred since."""
        amounts = {one.name for one in fields(self)} - {"peak_blocks", "depth_reasons"}
        spent = {name: getattr(self, name) - getattr(earlier, name) for name in amounts}
        reasons = {
            reason: count
            for reason, total in self.depth_reasons.items()
            if (count := total - earlier.depth_reasons.get(reason, 0))
        }
        return replace(self, **spent, depth_reasons=reasons)


class EnergyMeter(Protocol):
    """Counts the joules of a device."""

    def joules(self) -> float | None:
        """Joules since some moment that stays the same; None where the device does not tell at present."""


class EngineProtocol(Protocol):
    """An engine driven by one thread; only ``encode`` may be called from other threads."""

    @property
    def energy(self) -> EnergyMeter | None:
        """Counts what the device takes; None where nobody does."""

    @property
    def info(self) -> EngineInfo:
        """The loaded models, the device and the limits."""

    def encode(self, request: Request) -> EncodedRequest:
        """Return the request with its prompt as tokens. Thread-safe.

        Raises:
            RequestError: The prompt cannot be rendered or does not fit the context.
        """

    def add_request(self, request: EncodedRequest) -> None:
        """Queue an encoded request. If it cannot be served, ``step`` returns its error."""

    def step(self) -> list[GenerationResult]:
        """Run one step of the batch and return the results of the requests that ended."""

    def partials(self) -> Iterable[PartialOutput]:
        """The unfinished outputs that the last step has lengthened, of requests with a ``stream``."""

    def abort(self, request_id: str) -> None:
        """End a request; the next ``step`` returns its result (``aborted``). Unknown ids are ignored."""

    def has_unfinished(self) -> bool:
        """Whether another ``step`` has work to do or results to return."""

    def running(self) -> Collection[str]:
        """Ids of the requests in the batch: admitted, and neither ended nor preempted."""

    def counters(self) -> EngineCounters:
        """Totals since the engine was built."""

    def close(self) -> None:
        """Free the models and the caches."""
