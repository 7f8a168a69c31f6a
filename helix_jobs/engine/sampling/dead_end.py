"""The error of a request that comes to a place where its own fields leave no token to choose."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from helix_jobs.errors import InvalidRequestError
from helix_jobs.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from helix_jobs.engine.constraint import Kind
    from helix_jobs.engine.request import EncodedRequest

# The form of an answer in words.
_FORMS: Final[Mapping[Kind, str]] = {
    "json_schema": "the JSON schema",
    "json_object": "the JSON object that is asked for",
    "regex": "the regular expression",
    "choice": "the list of choices",
    "grammar": "the grammar",
}


def no_token_left(request: EncodedRequest, num_output_tokens: int) -> InvalidRequestError:
    """The error of a request whose fields forbid every token of the next position. It names these fields.

    Args:
        request: The request.
        num_output_tokens: Tokens of the answer before that position.
    """
    first = counted(num_output_tokens, "token")
    place = f"follow the answer's first {first}" if num_output_tokens else "begin the answer"
    found = list(_restrictions(request, num_output_tokens))
    names = " and ".join(name for name, _ in found) or "the request's fields"
    remedies = ", or ".join(remedy for _, remedy in found) or "ask for less of them"
    return InvalidRequestError(
        f"no token can {place}: {names} {'leaves' if len(found) == 1 else 'leave'} none; {remedies}"
    )


def _restrictions(request: EncodedRequest, num_output_tokens: int) -> Iterator[tuple[str, str]]:
    """Each field that forbids tokens there, and how it forbids fewer."""
    params = request.sampling_params
    if request.grammar is not None:
        if request.tools is not None:
            yield "tool_choice", "give tool_choice auto"
        else:
            form = _FORMS[request.grammar.kind]
            yield form, f"let {form} allow more"
    if params.allowed_token_ids is not None:
        yield "allowed_token_ids", "allow more tokens"
    if request.bad_words:
        yield "bad_words", "give fewer bad_words"
    if num_output_tokens < params.min_tokens:
        yield "min_tokens", "lower min_tokens"
    if request.max_reasoning_tokens is not None:
        yield "max_reasoning_tokens", "remove max_reasoning_tokens"
