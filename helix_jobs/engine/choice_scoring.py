"""ChoiceScoring: scores the options of one request, each as a sequence of prompt and option.

An option's score is the log probability of its tokens behind the prompt, of the target's distribution before
temperature: what lm-evaluation-harness calls a loglikelihood. The first option's sequence computes the prompt. The
others begin when it has ended, with the prompt's full blocks from the prefix cache, and run side by side.

Trade-off: an end token behind an option is not scored, so "New" and "New York" are compared as beginnings of an answer.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from helix_jobs.engine.request import FinishReason, GenerationResult
from helix_jobs.engine.sampling_params import SamplingParams
from helix_jobs.token_logprobs import IMPOSSIBLE

if TYPE_CHECKING:
    from helix_jobs.engine.request import EncodedRequest
    from helix_jobs.engine.schedule.sequence import Sequence
    from helix_jobs.errors import RequestError

_SCORED_ALONE: Final = SamplingParams(max_tokens=0, echo=True, logprobs=0)


class ChoiceScoring:
    """One request's options, and the scores found so far.

    Args:
        request: The request, with its options encoded.

    Attributes:
        request_id: The request's own.
        live: Ids of its sequences that have not ended.
        has_failed: It ends without scores: a sequence failed, or was aborted.
    """

    def __init__(self, request: EncodedRequest) -> None:
        assert request.score_choices is not None, "it has options"
        self._request = request
        self._asked = request.score_choices
        self.request_id = request.request_id
        self.live: set[str] = set()
        self.has_failed = False
        # Of each option, the log probabilities of its tokens.
        self._logprobs: dict[str, list[float]] = {}
        self._first: GenerationResult | None = None
        self._error: RequestError | None = None
        self._first_ended_at = 0.0

    def first(self) -> EncodedRequest:
        """The sequence to compute first."""
        return self._sequence(0)

    def take(self, sequence: Sequence) -> list[EncodedRequest]:
        """Take a sequence that has ended; return those to begin now."""
        result = sequence.result("")
        self.live.remove(sequence.request_id)
        if result.error is not None or result.finish_reason is FinishReason.ABORTED:
            self.has_failed = True
            self._error = self._error or result.error
        elif sequence.prompt_logprobs is not None:
            self._logprobs[sequence.request_id] = [max(IMPOSSIBLE, one) for one in sequence.prompt_logprobs.logprobs]
        if self._first is not None:
            return []
        self._first, self._first_ended_at = result, time.monotonic()
        return [] if self.has_failed else [self._sequence(index) for index in range(1, len(self._asked.options))]

    def result(self) -> GenerationResult:
        """The request's result, when no sequence is live."""
        assert self._first is not None, "the first sequence has ended"
        result = replace(
            self._first,
            request_id=self.request_id,
            prompt_tokens=len(self._request.prompt_token_ids),
            total_seconds=self._first.total_seconds + time.monotonic() - self._first_ended_at,
            error=self._error,
            finish_reason=None if self._error is not None else FinishReason.ABORTED,
        )
        if self.has_failed:
            return result
        options, by = self._asked.options, self._asked.by
        scores = {option: _score(self._logprobs[self._id(index)]) for index, option in enumerate(options)}
        # Of equals, max takes the first.
        best = max(range(len(options)), key=lambda index: scores[options[index]][by])
        return replace(
            result,
            output_text=options[best],
            output_token_ids=self._request.option_token_ids[best],
            finish_reason=FinishReason.STOP,
            scores=scores,
        )

    def _id(self, index: int) -> str:
        return f"{self.request_id}/{index}"

    def _sequence(self, index: int) -> EncodedRequest:
        self.live.add(self._id(index))
        prompt = self._request.prompt_token_ids
        return replace(
            self._request,
            request_id=self._id(index),
            prompt_token_ids=prompt + self._request.option_token_ids[index],
            sampling_params=_SCORED_ALONE,
            first_scored=len(prompt),
            num_counted=0 if index else len(prompt),
            score_choices=None,
            option_token_ids=(),
        )


@dataclass(frozen=True, slots=True)
class Turnover:
    """What follows from the end of a sequence.

    Attributes:
        begin: Sequences to begin.
        abort: Ids of sequences to abort, as their request has failed.
        ended: The request's result, once all its sequences have ended.
    """

    begin: tuple[EncodedRequest, ...] = ()
    abort: tuple[str, ...] = ()
    ended: tuple[GenerationResult, ...] = ()


class ChoiceScorings:
    """The requests in the engine whose options are scored, found by the ids of their sequences."""

    def __init__(self) -> None:
        self._by_request: dict[str, ChoiceScoring] = {}
        self._by_sequence: dict[str, ChoiceScoring] = {}

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._by_request

    def add(self, request: EncodedRequest) -> EncodedRequest:
        """Take a request; return the sequence to begin with."""
        scoring = self._by_request[request.request_id] = ChoiceScoring(request)
        first = scoring.first()
        self._by_sequence[first.request_id] = scoring
        return first

    def live(self, request_id: str) -> list[str]:
        """The sequences of a request that have not ended; none if the engine scores no such request."""
        scoring = self._by_request.get(request_id)
        return [] if scoring is None else list(scoring.live)

    def owner(self, sequence_id: str) -> str:
        """The request that a sequence belongs to; itself where no option is scored."""
        scoring = self._by_sequence.get(sequence_id)
        return sequence_id if scoring is None else scoring.request_id

    def take(self, sequence: Sequence) -> Turnover | None:
        """Take a sequence that has ended; None if it scores no option."""
        scoring = self._by_sequence.pop(sequence.request_id, None)
        if scoring is None:
            return None
        begin = tuple(scoring.take(sequence))
        for request in begin:
            self._by_sequence[request.request_id] = scoring
        if scoring.live:
            return Turnover(begin, tuple(scoring.live) if scoring.has_failed else ())
        del self._by_request[scoring.request_id]
        return Turnover(ended=(scoring.result(),))

    def clear(self) -> None:
        """Forget all requests."""
        self._by_request.clear()
        self._by_sequence.clear()


def _score(logprobs: list[float]) -> dict[str, float]:
    total = math.fsum(logprobs)
    return {"sum": total, "mean": total / len(logprobs), "tokens": len(logprobs)}
