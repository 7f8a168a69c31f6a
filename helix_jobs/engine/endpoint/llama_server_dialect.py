"""LlamaServerDialect: llama.cpp's own server, by its native completions, which carry token ids both ways."""

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
    text_of,
    token_ids_of,
)
from helix_jobs.engine.request import FinishReason

if TYPE_CHECKING:
    from collections.abc import Mapping

    from helix_jobs.engine.constraint import Constraint
    from helix_jobs.engine.endpoint.dialect import Asked

_STOPS: Final = {"eos": FinishReason.STOP, "word": FinishReason.STOP, "limit": FinishReason.LENGTH}
# The order in which Helix's own engine shapes a distribution; the server's own puts the temperature last.
_SAMPLERS: Final = ("penalties", "temperature", "top_k", "top_p", "min_p")


class LlamaServerDialect:
    """Satisfies ``Dialect``.

    The server ends answers at its model's end tokens. The request's further ones are watched here.

    In a stream the server leaves out the tokens of a character that takes several, though not its text: the number of
    tokens then shows that some are missing (see ``AnswerStream``).
    """

    name: Final = "llama-server"
    path: Final = "/completion"
    has_token_ids: Final = True
    fields: Final = COMMON_FIELDS | {"top_k", "min_p", "stop_token_ids", "repetition_penalty", "logprobs"}
    constraints: Final = frozenset({"json_schema", "json_object", "choice"})

    def body(self, model: str, asked: Asked) -> dict[str, Any]:
        """See ``Dialect``."""
        request, params = asked.request, asked.request.sampling_params
        made: dict[str, Any] = {
            "model": model,
            "prompt": list(request.prompt_token_ids),
            "n_predict": asked.max_tokens,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "top_k": params.top_k,
            "min_p": params.min_p,
            "presence_penalty": params.presence_penalty,
            "frequency_penalty": params.frequency_penalty,
            "repeat_penalty": params.repetition_penalty,
            # All tokens: newer releases refuse -1, which used to mean that.
            "repeat_last_n": len(request.prompt_token_ids) + asked.max_tokens,
            "samplers": list(_SAMPLERS),
            "cache_prompt": True,
            "return_tokens": True,
            "stream": True,
        }
        if not params.is_greedy:
            made["seed"] = asked.seed
        if params.logit_bias:
            made["logit_bias"] = [list(pair) for pair in params.logit_bias]
        if params.logprobs is not None:
            made["n_probs"] = max(1, params.logprobs)
        if asked.constraint is not None:
            made |= _form(asked.constraint)
        return made

    def read(self, event: Mapping[str, Any]) -> Piece:
        """See ``Dialect``."""
        if not isinstance(event.get("stop"), bool):
            raise UnreadableAnswerError("an event does not say whether the answer ends")
        finish = None
        if event["stop"]:
            finish = _STOPS.get(event.get("stop_type", ""))
            if finish is None:
                raise UnreadableAnswerError("the server ended the answer without saying why")
        timings = event.get("timings")
        return Piece(
            token_ids=token_ids_of(event.get("tokens", [])),
            text=text_of(event.get("content", "")),
            scores=_scores(event.get("completion_probabilities")),
            finish=finish,
            num_tokens=count_of(event.get("tokens_predicted")) if finish is not None else None,
            cached_prompt_tokens=count_of(timings.get("cache_n")) if isinstance(timings, dict) else None,
        )


def _form(constraint: Constraint) -> dict[str, Any]:
    if constraint.kind == "choice":
        return {"grammar": "root ::= " + " | ".join(map(_literal, json.loads(constraint.value)))}
    return {"json_schema": json.loads(constraint.value) if constraint.kind == "json_schema" else {"type": "object"}}


def _literal(text: str) -> str:
    """A text in GBNF, llama.cpp's form of grammars."""
    return '"' + "".join(one if one.isalnum() or one == " " else f"\\U{ord(one):08x}" for one in text) + '"'


def _scores(found: object) -> tuple[TokenScore, ...]:
    if found is None:
        return ()
    if not isinstance(found, list):
        raise UnreadableAnswerError("log probabilities are no list")
    return tuple(
        TokenScore(*_pair(one), tuple(_pair(other) for other in one.get("top_logprobs") or ()))
        for one in map(object_of, found)
    )


def _pair(found: object) -> tuple[int, float]:
    one = object_of(found)
    return token_ids_of([one.get("id")])[0], number_of(one.get("logprob"))
