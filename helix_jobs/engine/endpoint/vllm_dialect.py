"""VllmDialect: vLLM's completions, with token ids both ways."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.engine.endpoint.dialect import COMMON_FIELDS
from helix_jobs.engine.endpoint.piece import (
    Piece,
    TokenScore,
    UnreadableAnswerError,
    count_of,
    number_of,
    object_of,
    only_choice,
    token_ids_of,
)
from helix_jobs.engine.request import FinishReason

if TYPE_CHECKING:
    from collections.abc import Mapping

    from helix_jobs.engine.constraint import Constraint
    from helix_jobs.engine.endpoint.dialect import Asked

# The first release with ``structured_outputs``; ``return_token_ids`` is older.
OLDEST: Final = (0, 11)
_FINISHES: Final = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH}
_ID: Final = "token_id:"


class VllmDialect:
    """Satisfies ``Dialect``.

    vLLM is told every token that ends the answer, and to ignore its own: what ends an answer is then the same as with
    Helix's own engine.
    """

    name: Final = "vLLM"
    path: Final = "/v1/completions"
    has_token_ids: Final = True
    fields: Final = COMMON_FIELDS | {
        *("min_tokens", "top_k", "min_p", "stop_token_ids", "repetition_penalty", "bad_words", "allowed_token_ids"),
        *("ignore_eos", "logprobs"),
    }
    constraints: Final = frozenset({"json_schema", "json_object", "regex", "choice"})

    def body(self, model: str, asked: Asked) -> dict[str, Any]:
        """See ``Dialect``."""
        request, params = asked.request, asked.request.sampling_params
        # Every field that shapes the distribution is sent: a model's own defaults stand in for those left out.
        made: dict[str, Any] = {
            "model": model,
            "prompt": list(request.prompt_token_ids),
            "max_tokens": asked.max_tokens,
            "min_tokens": min(params.min_tokens, asked.max_tokens),
            "temperature": params.temperature,
            "top_p": params.top_p,
            "top_k": params.top_k,
            "min_p": params.min_p,
            "presence_penalty": params.presence_penalty,
            "frequency_penalty": params.frequency_penalty,
            "repetition_penalty": params.repetition_penalty,
            "stop_token_ids": sorted(asked.stop_token_ids),
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_token_ids": True,
        }
        if not params.is_greedy:
            made["seed"] = asked.seed
        if params.logit_bias:
            made["logit_bias"] = {str(token_id): bias for token_id, bias in params.logit_bias}
        if params.bad_words:
            made["bad_words"] = list(params.bad_words)
        if params.allowed_token_ids is not None:
            made["allowed_token_ids"] = list(params.allowed_token_ids)
        if params.logprobs is not None:
            made |= {"logprobs": params.logprobs, "return_tokens_as_token_ids": True}
        if asked.constraint is not None:
            made["structured_outputs"] = _structured(asked.constraint)
        return made

    def read(self, event: Mapping[str, Any]) -> Piece:
        """See ``Dialect``."""
        choice = only_choice(event)
        usage = event.get("usage")
        cached = num_tokens = None
        if isinstance(usage, dict):
            details = usage.get("prompt_tokens_details")
            cached = count_of(details.get("cached_tokens")) if isinstance(details, dict) else None
            num_tokens = count_of(usage.get("completion_tokens"))
        if choice is None:
            return Piece(cached_prompt_tokens=cached, num_tokens=num_tokens)
        reason = choice.get("finish_reason")
        if reason is not None and reason not in _FINISHES:
            raise UnreadableAnswerError("the server ended the answer without saying why")
        token_ids = choice.get("token_ids")
        return Piece(
            token_ids=() if token_ids is None else token_ids_of(token_ids),
            scores=_scores(choice.get("logprobs")),
            finish=None if reason is None else _FINISHES[reason],
            cached_prompt_tokens=cached,
            num_tokens=num_tokens,
        )


def _structured(constraint: Constraint) -> dict[str, Any]:
    if constraint.kind == "json_schema":
        return {"json": json.loads(constraint.value)}
    if constraint.kind == "choice":
        return {"choice": json.loads(constraint.value)}
    return {"regex": constraint.value} if constraint.kind == "regex" else {"json_object": True}


def _scores(found: object) -> tuple[TokenScore, ...]:
    """Log probabilities whose tokens are written as ``token_id:123``."""
    if found is None:
        return ()
    lists = object_of(found)
    tokens, logprobs, tops = (lists.get(name) for name in ("tokens", "token_logprobs", "top_logprobs"))
    if not isinstance(tokens, list) or not isinstance(logprobs, list) or len(tokens) != len(logprobs):
        raise UnreadableAnswerError("log probabilities are no lists")
    if not isinstance(tops, list) or len(tops) != len(tokens):
        tops = [None] * len(tokens)
    return tuple(
        TokenScore(_token_id(token), number_of(logprob), _alternatives(top))
        for token, logprob, top in zip(tokens, logprobs, tops, strict=True)
    )


def _alternatives(top: object) -> tuple[tuple[int, float], ...]:
    if top is None:
        return ()
    pairs = ((_token_id(token), number_of(logprob)) for token, logprob in object_of(top).items())
    return tuple(sorted(pairs, key=lambda pair: (-pair[1], pair[0])))


def _token_id(token: object) -> int:
    digits = token.removeprefix(_ID) if isinstance(token, str) and token.startswith(_ID) else ""
    if not digits.isdecimal() or len(digits) > len(str(2**31)):
        raise UnreadableAnswerError("a token of the log probabilities is no token id")
    return int(digits)
