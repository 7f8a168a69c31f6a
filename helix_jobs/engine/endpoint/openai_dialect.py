"""OpenAIDialect: what every OpenAI-compatible server has, in text both ways; and llama-cpp-python's additions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from helix_jobs.engine.endpoint.dialect import COMMON_FIELDS
from helix_jobs.engine.endpoint.piece import Piece, UnreadableAnswerError, only_choice, text_of
from helix_jobs.engine.request import FinishReason

if TYPE_CHECKING:
    from collections.abc import Mapping

    from helix_jobs.engine.endpoint.dialect import Asked

_FINISHES: Final = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH}
# The most stop strings that OpenAI's interface takes. Helix cuts at the others itself.
_MOST_STOPS: Final = 4


class OpenAIDialect:
    """Satisfies ``Dialect`` for a server of which nothing else is known.

    Fields that OpenAI's interface has not are left to the server's own defaults.
    """

    name: str = "OpenAI-compatible server"
    path: Final = "/v1/completions"
    has_token_ids: Final = False
    fields: frozenset[str] = COMMON_FIELDS
    constraints: Final = frozenset[str]()

    def body(self, model: str, asked: Asked) -> dict[str, Any]:
        """See ``Dialect``."""
        request, params = asked.request, asked.request.sampling_params
        made: dict[str, Any] = {
            "model": model,
            "prompt": asked.prompt_text,
            "max_tokens": asked.max_tokens,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "presence_penalty": params.presence_penalty,
            "frequency_penalty": params.frequency_penalty,
            "stream": True,
        }
        if not params.is_greedy:
            made["seed"] = asked.seed
        if params.logit_bias:
            made["logit_bias"] = {str(token_id): bias for token_id, bias in params.logit_bias}
        if params.stop and request.reasoning is None and not params.include_stop_str_in_output:
            # They save tokens. Where the answer may think they count behind the thinking only, as Helix sees them.
            made["stop"] = list(params.stop[:_MOST_STOPS])
        return made

    def read(self, event: Mapping[str, Any]) -> Piece:
        """See ``Dialect``."""
        choice = only_choice(event)
        if choice is None:
            return Piece()
        reason = choice.get("finish_reason")
        if reason is not None and reason not in _FINISHES:
            raise UnreadableAnswerError("the server ended the answer without saying why")
        text = choice.get("text")
        return Piece(text="" if text is None else text_of(text), finish=None if reason is None else _FINISHES[reason])


class LlamaCppPythonDialect(OpenAIDialect):
    """llama-cpp-python's server, whose own defaults would otherwise narrow the distribution."""

    name: str = "llama-cpp-python"
    fields: frozenset[str] = COMMON_FIELDS | {"top_k", "min_p", "repetition_penalty"}

    def body(self, model: str, asked: Asked) -> dict[str, Any]:
        """See ``Dialect``."""
        params = asked.request.sampling_params
        return {
            **super().body(model, asked),
            "top_k": params.top_k,
            "min_p": params.min_p,
            "repeat_penalty": params.repetition_penalty,
        }
