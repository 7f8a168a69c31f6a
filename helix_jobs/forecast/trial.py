"""run_trial: some requests answered for real, and what they tell: lengths of answers, and what steps cost."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from helix_jobs.engine.request import FinishReason
from helix_jobs.errors import EngineError
from helix_jobs.forecast.length_model import Answer
from helix_jobs.forecast.step_costs import StepCosts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from helix_jobs.engine.protocol import EngineProtocol
    from helix_jobs.engine.request import EncodedRequest, GenerationResult

# Stretches that the trial is cut into: from their differences the unrest of the machine is read.
_STRETCHES: Final = 8
_WARM_UP_TOKENS: Final = 4


@dataclass(frozen=True, slots=True)
class Trial:
    """What was tried.

    Attributes:
        answers: Those that ended, and those that were under way when time was up.
        ended: Request id -> the tokens of each of its answers; only of requests that ended.
        stretches: What steps cost, one stretch after the other.
        seconds: How long it took.
        failed: Requests that ended with an error.
        was_cut: Time was up before the last answer.
    """

    answers: tuple[Answer, ...]
    ended: Mapping[str, tuple[int, ...]]
    stretches: tuple[StepCosts, ...]
    seconds: float
    failed: int
    was_cut: bool


def run_trial(
    engine: EngineProtocol,
    requests: Sequence[EncodedRequest],
    limits: Mapping[str, int],
    *,
    most_seconds: float,
    clock: Callable[[], float] = time.perf_counter,
    on_ended: Callable[[int], None] = lambda _count: None,
) -> Trial:
    """Answer requests until the last has ended or time is up.

    Args:
        engine: Has nothing else to do.
        requests: The sample, in the order of the file.
        limits: Request id -> most tokens of its answers.
        most_seconds: After so many seconds the rest is broken off.
        clock: Seconds.
        on_ended: Called with the number of requests that have ended.

    Raises:
        EngineError: Not one request could be answered.
    """
    if requests:
        _warm_up(engine, requests[0])
    for request in requests:
        engine.add_request(request)
    stretches = [StepCosts() for _ in range(_STRETCHES)]
    results: list[GenerationResult] = []
    began = now = clock()
    was_cut = False
    while engine.has_unfinished():
        if now - began > most_seconds and not was_cut:
            was_cut = True
            _abort(engine, {one.request_id for one in requests} - {one.request_id for one in results})
        before, earlier = engine.counters(), now
        ended = engine.step()
        now = clock()
        place = len(results) * _STRETCHES // len(requests)
        if not was_cut:
            stretches[min(place, _STRETCHES - 1)].add_step(before, engine.counters(), now - earlier)
        if ended:
            results += ended
            on_ended(len(results))
    if requests and all(one.error is not None for one in results):
        raise EngineError(f"no request of the trial could be answered; the first ended with: {results[0].error}")
    good = [one for one in results if one.error is None]
    return Trial(
        answers=tuple(_answer(choice, limits[one.request_id]) for one in good for choice in one.choices),
        ended={
            one.request_id: tuple(choice.completion_tokens for choice in one.choices)
            for one in good
            if one.finish_reason is not FinishReason.ABORTED
        },
        stretches=tuple(stretches),
        seconds=now - began,
        failed=len(results) - len(good),
        was_cut=was_cut,
    )


def _warm_up(engine: EngineProtocol, request: EncodedRequest) -> None:
    """Let the engine do once what it does more slowly the first time."""
    params = replace(request.sampling_params, max_tokens=_WARM_UP_TOKENS, min_tokens=0, n=1)
    engine.add_request(replace(request, request_id="warm-up", sampling_params=params))
    while engine.has_unfinished():
        engine.step()


def _abort(engine: EngineProtocol, request_ids: Iterable[str]) -> None:
    for request_id in request_ids:
        engine.abort(request_id)


def _answer(choice: GenerationResult, limit: int) -> Answer:
    is_whole = choice.finish_reason in (FinishReason.STOP, FinishReason.TOOL_CALLS)
    return Answer(choice.prompt_tokens, limit, choice.completion_tokens, is_whole)
