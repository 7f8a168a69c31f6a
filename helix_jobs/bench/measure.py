"""Measurement: requests through an engine, in process, and the figures of that run."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from helix_jobs.bench.machine import peak_device_memory, peak_memory, reset_peak_memory
from helix_jobs.bench.percentiles import Percentiles, median

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from helix_jobs.engine.engine import Engine
    from helix_jobs.engine.protocol import EngineCounters
    from helix_jobs.engine.request import EncodedRequest, GenerationResult


@dataclass(frozen=True, slots=True, kw_only=True)
class StepShares:
    """Shares of the wall time, 0 to 1.

    Attributes:
        schedule: Choosing what the step computes.
        draft: Proposing tokens.
        target: The target model's pass, attention included.
        attention: Attention within it; 0 where the device is asynchronous and cannot be asked.
        verify: Processing logits, sampling and acceptance.
        other: What is left: counting, text, results.
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
        failed: Of those, ended with an error.
        prompt_tokens: Tokens of their prompts.
        output_tokens: Tokens they emitted, end tokens excluded.
        output_tokens_per_second: Over the wall time.
        prompt_tokens_per_second: Over the wall time.
        ttft_from_submission: Seconds from the submission of the whole batch to each first token.
        ttft_from_admission: Seconds from each admission to the first token.
        inter_token: Seconds between tokens: the time since the sequence's last emission over the tokens of this one,
            counted once for each of them.
        draft_tokens: Proposed tokens.
        acceptance_rate: Accepted / drafted; None when nothing was drafted.
        mean_depth: Drafted tokens for each sequence and decode step.
        mean_acceptance_length: Emitted tokens for each sequence and target step.
        steps: Engine steps.
        mean_batch_size: Sequences in a step.
        cached_prompt_tokens: Prompt tokens whose keys and values were shared instead of computed.
        preemptions: Sequences that lost their blocks and were computed again.
        depth_reasons: Steps for each reason that the adaptive depth had.
        shares: Where the time went; None of an engine that does not count it.
        decode_step: The step that dominates; None when no step decoded alone.
        peak_memory_bytes: Most resident memory during the run (where the system cannot say: since the start).
        peak_device_bytes: Most device memory during the run; None where there is none.
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


@dataclass(frozen=True, slots=True)
class _Step:
    seconds: float
    sequences: int
    decodes: int
    drafted: int


def measure(engine: Engine, requests: Sequence[EncodedRequest], device: torch.device) -> Run:
    """Run encoded requests to their end. The engine must be idle."""
    reset_peak_memory(device)
    watch = _EmissionWatch()
    steps: list[_Step] = []
    results: dict[str, GenerationResult] = {}
    before = last = engine.counters()
    start = moment = time.perf_counter()
    for request in requests:
        engine.add_request(request)
    while engine.has_unfinished():
        ended = engine.step()
        now = time.perf_counter()
        results.update((result.request_id, result) for result in ended)
        watch.step(engine, now)
        counters = engine.counters()
        steps.append(_step(now - moment, last, counters))
        last, moment = counters, now
    seconds = time.perf_counter() - start
    ordered = [results[request.request_id] for request in requests]
    return Run(
        _measurement(seconds, results=ordered, before=before, after=last, steps=steps, gaps=watch.gaps, device=device),
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


def _step(seconds: float, before: EngineCounters, after: EngineCounters) -> _Step:
    return _Step(
        seconds,
        after.sequence_steps - before.sequence_steps,
        after.decode_sequence_steps - before.decode_sequence_steps,
        after.draft_tokens - before.draft_tokens,
    )


def _measurement(
    seconds: float,
    *,
    results: list[GenerationResult],
    before: EngineCounters,
    after: EngineCounters,
    steps: list[_Step],
    gaps: list[float],
    device: torch.device,
) -> Measurement:
    started = [result for result in results if result.ttft_seconds is not None]
    prompt_tokens = sum(result.prompt_tokens for result in results)
    output_tokens = sum(result.completion_tokens for result in results)
    drafted = sum(result.draft_tokens for result in results)
    target_steps = sum(result.target_steps for result in results)
    num_steps = after.steps - before.steps
    decodes = after.decode_sequence_steps - before.decode_sequence_steps
    return Measurement(
        seconds=seconds,
        requests=len(results),
        failed=sum(result.error is not None for result in results),
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        output_tokens_per_second=output_tokens / seconds,
        prompt_tokens_per_second=prompt_tokens / seconds,
        ttft_from_submission=Percentiles.of([r.queue_seconds + (r.ttft_seconds or 0.0) for r in started]),
        ttft_from_admission=Percentiles.of([r.ttft_seconds or 0.0 for r in started]),
        inter_token=Percentiles.of(gaps),
        draft_tokens=drafted,
        acceptance_rate=sum(result.accepted_tokens for result in results) / drafted if drafted else None,
        mean_depth=(after.draft_tokens - before.draft_tokens) / decodes if decodes else 0.0,
        mean_acceptance_length=output_tokens / target_steps if target_steps else None,
        steps=num_steps,
        mean_batch_size=(after.sequence_steps - before.sequence_steps) / num_steps if num_steps else 0.0,
        cached_prompt_tokens=after.cached_prompt_tokens - before.cached_prompt_tokens,
        preemptions=after.preemptions - before.preemptions,
        depth_reasons=_difference(before.depth_reasons, after.depth_reasons),
        shares=_shares(seconds, before, after),
        decode_step=_decode_step(steps),
        peak_memory_bytes=peak_memory(),
        peak_device_bytes=peak_device_memory(device),
    )


def _difference(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, int]:
    counts = {reason: count - before.get(reason, 0) for reason, count in after.items()}
    return {reason: count for reason, count in counts.items() if count}


def _shares(seconds: float, before: EngineCounters, after: EngineCounters) -> StepShares | None:
    schedule = (after.schedule_seconds - before.schedule_seconds) / seconds
    draft = (after.draft_seconds - before.draft_seconds) / seconds
    target = (after.target_seconds - before.target_seconds) / seconds
    verify = (after.verify_seconds - before.verify_seconds) / seconds
    if target == 0.0:
        return None
    return StepShares(
        schedule=schedule,
        draft=draft,
        target=target,
        attention=(after.attention_seconds - before.attention_seconds) / seconds,
        verify=verify,
        other=max(0.0, 1.0 - schedule - draft - target - verify),
    )


def _decode_step(steps: Sequence[_Step]) -> DecodeStep | None:
    alike: dict[int, list[_Step]] = defaultdict(list)
    for step in steps:
        if step.decodes and step.decodes == step.sequences:
            alike[step.decodes].append(step)
    if not alike:
        return None
    chosen = max(alike.values(), key=lambda group: sum(step.seconds for step in group))
    return DecodeStep(
        num_sequences=chosen[0].decodes,
        num_tokens=round(median([step.decodes + step.drafted for step in chosen])),
        seconds=median([step.seconds for step in chosen]),
        count=len(chosen),
    )
