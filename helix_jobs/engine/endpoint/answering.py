"""Answering: one choice of a request while the server answers it."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

from helix_jobs.engine.request import FinishReason, GenerationResult
from helix_jobs.engine.schedule.logprob_record import LogprobRecord
from helix_jobs.token_logprobs import IMPOSSIBLE, NO_TOKEN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from helix_jobs.engine.endpoint.dialect import Asked
    from helix_jobs.engine.endpoint.piece import Piece, TokenScore
    from helix_jobs.engine.request import EncodedRequest
    from helix_jobs.engine.sampling.output_grammar import OutputGrammar
    from helix_jobs.engine.text.stop_strings import StopStringWatch
    from helix_jobs.errors import RequestError


class Answering:
    """The tokens, log probabilities and timings of one answer (satisfies ``EndedOutput``).

    Args:
        asked: The answer that is asked for.
        grammar: The form that it must have; None for any.
        watch: Finds its stop strings; None without any.
    """

    def __init__(self, asked: Asked, grammar: OutputGrammar | None, watch: StopStringWatch | None) -> None:
        self.asked = asked
        self.request: EncodedRequest = asked.request
        self.request_id = asked.request.request_id
        self.grammar = grammar
        self.watch = watch
        params = asked.request.sampling_params
        # Those that stay in the output, at its end.
        self.kept_stop_ids = frozenset(params.stop_token_ids if params.include_stop_str_in_output else ())
        self.added_at = time.monotonic()
        # The number under which the server is asked; None while it waits.
        self.ask: int | None = None
        self.cached_prompt_tokens = 0
        # Whether the server was lost while it computed this answer.
        self.lost_with_server = False
        self.begin()
        # Waiting counts as such until the answer is asked for.
        self.admitted_at: float | None = None

    def begin(self) -> None:
        """Begin, or begin anew: what has come so far does not count."""
        params = self.request.sampling_params
        self.admitted_at = time.monotonic()
        self.finish_reason: FinishReason | None = None
        self.error: RequestError | None = None
        self.first_token_at: float | None = None
        self.last_token_at: float | None = None
        self.output_token_ids: list[int] = []
        self.texts: list[str] = []
        # The answer before a stop string; None without one.
        self.stopped_text: str | None = None
        self.logprobs = None if params.logprobs is None else LogprobRecord(params.logprobs)
        self.prompt_logprobs: LogprobRecord | None = None
        self.server_finish: FinishReason | None = None

    @property
    def num_output_tokens(self) -> int:
        """Length of the output so far."""
        return len(self.output_token_ids)

    @property
    def is_ended(self) -> bool:
        """Whether the output has ended."""
        return self.finish_reason is not None or self.error is not None

    def take(self, piece: Piece) -> int:
        """Take what has come, up to a token that ends the output or to the most tokens; return how many were taken."""
        if piece.cached_prompt_tokens is not None:  # comes last
            self.cached_prompt_tokens = min(piece.cached_prompt_tokens, len(self.request.prompt_token_ids))
        if self.is_ended:
            return 0
        now = time.monotonic()
        if piece.finish is not None:
            self.server_finish = piece.finish
        if piece.text:
            self.texts.append(piece.text)
        if piece.text or piece.token_ids:
            self.first_token_at = self.first_token_at or now
            self.last_token_at = now
        if len(self.texts) > self.asked.max_tokens:  # a server sends a token's text in one event
            self.finish(FinishReason.LENGTH)
        return self._append(piece.token_ids, piece.scores)

    def replace_tokens(self, token_ids: Sequence[int]) -> None:
        """Put the tokens of the whole text in the place of those that have come.

        The text may take more tokens than the server has made: only an answer that went on too long is cut.
        """
        most = self.asked.max_tokens if self.finish_reason is FinishReason.LENGTH else None
        self.output_token_ids = list(token_ids[:most])

    def end(self) -> None:
        """The server has ended the answer."""
        if not self.is_ended:
            self.finish(self.server_finish or FinishReason.STOP)

    def finish(self, reason: FinishReason) -> None:
        """End with a reason."""
        self.finish_reason = reason

    def fail(self, error: RequestError) -> None:
        """End with an error of this request alone."""
        self.finish_reason, self.error = None, error

    def truncate_output(self, num_output_tokens: int) -> None:
        """Forget output tokens past ``num_output_tokens``, where a stop string ended the output."""
        del self.output_token_ids[num_output_tokens:]
        if self.logprobs is not None:
            self.logprobs.truncate(num_output_tokens)

    def result(self, output_text: str) -> GenerationResult:
        """The immutable result."""
        now = time.monotonic()
        admitted = now if self.admitted_at is None else self.admitted_at
        first, last = self.first_token_at, self.last_token_at
        return GenerationResult(
            request_id=self.request_id,
            output_text=output_text,
            output_token_ids=tuple(self.output_token_ids),
            finish_reason=self.finish_reason,
            error=self.error,
            prompt_tokens=len(self.request.prompt_token_ids),
            cached_prompt_tokens=self.cached_prompt_tokens,
            queue_seconds=admitted - self.added_at,
            ttft_seconds=None if first is None else first - admitted,
            decode_seconds=0.0 if first is None or last is None else last - first,
            total_seconds=now - admitted,
            draft_tokens=0,
            accepted_tokens=0,
            target_steps=0,
            dropped_prompt_tokens=self.request.dropped_prompt_tokens,
            choice=self.request.choice,
            lost_with_server=self.lost_with_server,
        )

    def _append(self, token_ids: Sequence[int], scores: Sequence[TokenScore]) -> int:
        """Append tokens until one ends the output; a stop token is appended only if the request keeps it."""
        count = 0
        for number, token_id in enumerate(token_ids):
            if self.is_ended:
                break
            if is_end := token_id in self.asked.stop_token_ids:
                self.finish(FinishReason.STOP)
                if token_id not in self.kept_stop_ids:
                    break
            self.output_token_ids.append(token_id)
            count += 1
            if self.logprobs is not None and number < len(scores):
                _extend(self.logprobs, scores[number])
            if not is_end and len(self.output_token_ids) >= self.asked.max_tokens:
                self.finish(FinishReason.LENGTH)
        return count


def _extend(record: LogprobRecord, score: TokenScore) -> None:
    """Append one position: its token, then as many alternatives as the request asks for."""
    wanted = record.num_alternatives
    found = [*score.alternatives[:wanted], *[(NO_TOKEN, math.nan)] * max(0, wanted - len(score.alternatives))]
    record.token_ids.extend([score.token_id, *(token_id for token_id, _ in found)])
    record.logprobs.extend(
        [max(IMPOSSIBLE, score.logprob), *(max(IMPOSSIBLE, value) if value == value else value for _, value in found)]  # noqa: PLR0124  (NaN)
    )
