"""Measurement: runs requests through an engine in this process and collects the run's figures."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from helix_jobs.bench.machine import peak_device_memory, reset_peak_memory
from helix_jobs.bench.percentiles import Percentiles
from helix_jobs.bench.process_memory import peak_memory
from helix_jobs.token_counts import total_tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from helix_jobs.engine.engine import Engine
    from helix_jobs.engine.protocol import EngineCounters
    from helix_jobs.engine.request import EncodedRequest, GenerationResult


@dataclass(frozen=True, slots=True, kw_only=True)
class StepShares:
    """Shares of the wall time, 0 to 1.

    Attributes:
        schedule: Choosing the step's work.
        draft: Proposing tokens.
        target: The target model's pass, attention included.
        attention: Attention within the target's pass; 0 if the device is asynchronous and cannot measure it.
        verify: Processing logits, sampling and acceptance.
        other: The rest: counting, text, results.
    """

    schedule: float
    draft: float
    target: float
    attention: float
    verify: float
    other: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeStep:
    """The decode-only step that took most of the run: all steps with this many sequences and no prompt chunk.

    ``seconds`` and ``num_tokens`` (drafts included) are medians over ``count`` steps.
    """

    num_sequences: int
    num_tokens: int
    seconds: float
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One run of a workload.

    Attributes:
        seconds: Wall time from the first ``add_request`` to the last result.
        requests: Requests that ran.
        failed: Requests that ended with an error.
        prompt_tokens: Tokens of all prompts.
        output_tokens: Emitted tokens, end tokens excluded.
        output_tokens_per_second: Over the wall time.
        prompt_tokens_per_second: Over the wall time.
        ttft_from_submission: Seconds from the submission of the whole batch to each first token.
        ttft_from_admission: Seconds from each admission to the first token.
        inter_token: Seconds between tokens: the time since the sequence's last emission divided by the tokens of this
            emission, counted once for each of these tokens.
        draft_tokens: Proposed tokens.
        acceptance_rate: Accepted / drafted; None when nothing was drafted.
        forced_tokens: The part of ``draft_tokens`` that a grammar forced.
        accepted_forced_tokens: Forced tokens that the target accepted.
        mean_depth: Drafted tokens for each sequence and decode step.
        mean_acceptance_length: Emitted tokens for each sequence and target step.
        steps: Engine steps.
        mean_batch_size: Sequences in a step.
        cached_prompt_tokens: Prompt tokens whose keys and values were shared instead of computed.
        preemptions: Sequences that lost their blocks and were computed again.
        depth_reasons: Steps for each reason that the adaptive depth had.
        shares: How the time was spent; None if the engine does not count it.
        decode_step: The decode-only step that took most time; None if there was no such step.
        peak_memory_bytes: Most resident memory during the run (or since the process's start, if the system cannot reset
            it).
        peak_device_bytes: Most device memory during the run; None if the device has none.
    """

    seconds: float
    requests: int
    failed: int
    prompt_tokens: int
    output_tokens: int
    output_tokens_per_second: float
    prompt_tokens_per_second: float
    ttft_from_submission: Percentiles | None
    ttft_from_admission: Percentiles | None
    inter_token: Percentiles | None
    draft_tokens: int
    acceptance_rate: float | None
    forced_tokens: int
    accepted_forced_tokens: int
    mean_depth: float
    mean_acceptance_length: float | None
    steps: int
    mean_batch_size: float
    cached_prompt_tokens: int
    preemptions: int
    depth_reasons: dict[str, int]
    shares: StepShares | None
    decode_step: DecodeStep | None
    peak_memory_bytes: int
    peak_device_bytes: int | None


@dataclass(frozen=True, slots=True)
class Run:
    """A measurement, and the token ids each request emitted, in the order of the requests."""

    measurement: Measurement
    outputs: tuple[tuple[int, ...], ...]


def measure(engine: Engine, requests: Sequence[EncodedRequest], device: torch.device) -> Run:
    """Run encoded requests to their end. The engine must be idle."""
    reset_peak_memory(device)
    watch = _EmissionWatch()
    steps: list[tuple[float, EngineCounters]] = []
    results: dict[str, GenerationResult] = {}
    before = engine.counters()
    start = moment = time.perf_counter()
    for request in requests:
        engine.add_request(request)
    while engine.has_unfinished():
        ended = engine.step()
        now = time.perf_counter()
        results.update((result.request_id, result) for result in ended)
        watch.step(engine, now)
        steps.append((now - moment, engine.counters()))
        moment = now
    seconds = time.perf_counter() - start
    ordered = [results[request.request_id] for request in requests]
    return Run(
        _measurement(seconds, results=ordered, before=before, steps=steps, gaps=watch.gaps, device=device),
        tuple(result.output_token_ids for result in ordered),
    )


class _EmissionWatch:
    """Collects the times between the emissions of each sequence."""

    def __init__(self) -> None:
        self.gaps: list[float] = []
        self._last: dict[str, float] = {}

    def step(self, engine: Engine, now: float) -> None:
        for emission in engine.emitted:
            if not emission.token_ids:
                continue
            name = emission.sequence.request_id
            if name in self._last:
                count = len(emission.token_ids)
                self.gaps += [(now - self._last[name]) / count] * count
            self._last[name] = now


def _measurement(
    seconds: float,
    *,
    results: list[GenerationResult],
    before: EngineCounters,
    steps: list[tuple[float, EngineCounters]],
    gaps: list[float],
    device: torch.device,
) -> Measurement:
    started = [result for result in results if result.ttft_seconds is not None]
    tokens = total_tokens([result.tokens for result in results])
    target_steps = sum(result.target_steps for result in results)
    spent = (steps[-1][1] if steps else before) - before
    decodes = spent.decode_sequence_steps
    return Measurement(
        seconds=seconds,
        requests=len(results),
        failed=sum(result.error is not None for result in results),
        prompt_tokens=tokens.prompt_tokens,
        output_tokens=tokens.completion_tokens,
        output_tokens_per_second=tokens.completion_tokens / seconds,
        prompt_tokens_per_second=tokens.prompt_tokens / seconds,
        ttft_from_submission=Percentiles.of([r.queue_seconds + (r.ttft_seconds or 0.0) for r in started]),
        ttft_from_admission=Percentiles.of([r.ttft_seconds or 0.0 for r in started]),
        inter_token=Percentiles.of(gaps),
        draft_tokens=tokens.draft_tokens,
        acceptance_rate=tokens.acceptance_rate,
        forced_tokens=spent.forced_tokens,
        accepted_forced_tokens=spent.accepted_forced_tokens,
        mean_depth=spent.draft_tokens / decodes if decodes else 0.0,
        mean_acceptance_length=tokens.completion_tokens / target_steps if target_steps else None,
        steps=spent.steps,
        mean_batch_size=spent.sequence_steps / spent.steps if spent.steps else 0.0,
        cached_prompt_tokens=spent.cached_prompt_tokens,
        preemptions=spent.preemptions,
        depth_reasons=dict(spent.depth_reasons),
        shares=_shares(seconds, spent),
        decode_step=_decode_step(before, steps),
        peak_memory_bytes=peak_memory(),
        peak_device_bytes=peak_device_memory(device),
    )


def _shares(seconds: float, spent: EngineCounters) -> StepShares | None:
    if spent.target_seconds == 0.0:
        return None
    schedule, draft, target, verify = (
        spent.schedule_seconds / seconds,
        spent.draft_seconds / seconds,
        spent.target_seconds / seconds,
        spent.verify_seconds / seconds,
    )
    return StepShares(
        schedule=schedule,
        draft=draft,
        target=target,
        attention=spent.attention_seconds / seconds,
        verify=verify,
        other=max(0.0, 1.0 - schedule - draft - target - verify),
    )


def _decode_step(before: EngineCounters, steps: Sequence[tuple[float, EngineCounters]]) -> DecodeStep | None:
    """Find the steps that decoded alone, by their batch size; ``steps`` are seconds and the counters after each."""
    alike: dict[int, list[tuple[float, int]]] = defaultdict(list)
    for seconds, after in steps:
        step, before = after - before, after
        decodes = step.decode_sequence_steps
        if decodes and decodes == step.sequence_steps:
            alike[decodes].append((seconds, decodes + step.draft_tokens))
    if not alike:
        return None
    num_sequences, chosen = max(alike.items(), key=lambda item: sum(seconds for seconds, _ in item[1]))
    return DecodeStep(
        num_sequences=num_sequences,
        num_tokens=round(median([num_tokens for _, num_tokens in chosen])),
        seconds=median([seconds for seconds, _ in chosen]),
        count=len(chosen),
    )
