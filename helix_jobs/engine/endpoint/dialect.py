"""Dialect: how one kind of server is asked and read, and what it cannot do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from helix_jobs.engine.sampling_params import SamplingParams
from helix_jobs.errors import InvalidFieldError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from helix_jobs.engine.constraint import Constraint
    from helix_jobs.engine.endpoint.piece import Piece
    from helix_jobs.engine.request import EncodedRequest, Request

# Sampling fields that need nothing of a server, or that all servers have.
COMMON_FIELDS: Final = frozenset(
    {
        *("max_tokens", "temperature", "top_p", "seed", "presence_penalty", "frequency_penalty", "logit_bias"),
        # Helix asks for each choice by itself, cuts at stop strings, and writes the prompt before an echoed answer.
        *("n", "stop", "include_stop_str_in_output", "echo"),
    }
)
_DEFAULTS: Final = SamplingParams()
_REMEDY: Final = "remove it, or run these lines with Helix's own engine"
# vLLM takes seeds of 63 bits, llama-server of 32; 31 bits serve all.
_SEEDS: Final = 2_147_483_648


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One answer to be asked for.

    Attributes:
        request: The request; of several choices, the choice's own.
        prompt_text: The prompt as text with its special tokens, for a server that takes no token ids.
        max_tokens: The most new tokens that the request and the context allow.
        stop_token_ids: Tokens that end the answer.
        constraint: The form that the answer must have; None for any.
    """

    request: EncodedRequest
    prompt_text: str
    max_tokens: int
    stop_token_ids: frozenset[int]
    constraint: Constraint | None = None

    @property
    def seed(self) -> int:
        """The request's seed in as many bits as every server takes."""
        return self.request.seed % _SEEDS


class Dialect(Protocol):
    """How one kind of server is asked. The server's own name in rows and messages is ``name``."""

    @property
    def name(self) -> str:
        """The kind of server."""

    @property
    def path(self) -> str:
        """Where answers are asked for, behind the server's address."""

    @property
    def has_token_ids(self) -> bool:
        """Whether prompts and answers travel as token ids; otherwise both are text."""

    @property
    def fields(self) -> frozenset[str]:
        """The sampling fields that can be kept."""

    @property
    def constraints(self) -> frozenset[str]:
        """The kinds of constraints that can be kept."""

    def body(self, model: str, asked: Asked) -> dict[str, Any]:
        """The JSON that asks for one answer as a stream."""

    def read(self, event: Mapping[str, Any]) -> Piece:
        """What an event adds to the answer.

        Raises:
            UnreadableAnswerError: The event is none of this kind of server's.
        """


def check_fields(request: Request, dialect: Dialect) -> None:
    """Refuse what this kind of server cannot do, before anything is asked.

    Raises:
        InvalidFieldError: The message names the field and the server.
    """
    params, server = request.sampling_params, dialect.name
    for name in SamplingParams.__dataclass_fields__:
        if name not in dialect.fields and getattr(params, name) != getattr(_DEFAULTS, name):
            raise InvalidFieldError(name, f"{server} cannot do that for Helix", _REMEDY)
    if params.prompt_alternatives is not None:
        raise InvalidFieldError("echo", f"{server} sends no log probabilities of prompts in a stream", _REMEDY)
    if request.score_choices is not None:
        raise InvalidFieldError("choices", f"{server} cannot score options for Helix", _REMEDY)
    if request.adapter is not None:
        raise InvalidFieldError(
            "adapter",
            f"adapters of {server} are models of their own there",
            "start a worker with HELIX_ENDPOINT_MODEL set to its name, and remove the field",
        )
    constraint = request.constraint
    if constraint is not None and constraint.kind not in dialect.constraints:
        kinds = ", ".join(sorted(dialect.constraints)) or "none"
        raise InvalidFieldError(
            "constraint", f"{server} cannot keep a {constraint.kind} for Helix; it can keep {kinds}", _REMEDY
        )
    if request.tools is not None and request.tools.is_forced:
        raise InvalidFieldError("tool_choice", f"{server} cannot be held to a call by Helix", "give auto or none")
    if request.reasoning is not None and request.reasoning.max_tokens is not None:
        raise InvalidFieldError("reasoning", f"{server} cannot be held to a number of tokens of thinking", _REMEDY)


def check_encoded(encoded: EncodedRequest, dialect: Dialect) -> None:
    """Refuse a form of the answer behind thinking: servers hold an answer to its form from the first token on.

    Raises:
        InvalidFieldError: The answer may think and must have a form.
    """
    if encoded.grammar is not None and encoded.reasoning is not None:
        raise InvalidFieldError(
            "constraint",
            f"{dialect.name} would hold the thinking to the answer's form as well",
            "switch thinking off for this line, or remove the form",
        )
