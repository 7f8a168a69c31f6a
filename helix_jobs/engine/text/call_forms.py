"""The form in which a model writes calls of functions: which it is, and what an answer in it holds."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.engine.text.calls import Call, CallForm, NoCallsError
from helix_jobs.engine.text.json_call_forms import JSON_FORMS
from helix_jobs.engine.text.json_calls import calls_of
from helix_jobs.engine.text.tagged_call_forms import TAGGED_FORMS

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from helix_jobs.engine.text.channels import Message

FORMS: Final[Mapping[str, CallForm]] = {form.name: form for form in (*TAGGED_FORMS, *JSON_FORMS)}


def find_call_form(shown: str, name: str) -> str | None:
    """The name of the form in which a rendered chat shows a call of the function ``name``; None if in no known one."""
    for form in FORMS.values():
        if re.search(form.seen.replace("NAME", re.escape(name)), shown):
            return form.name
    return None


def form_of_tokens(added_tokens: Collection[str]) -> str | None:
    """The name of the form of which a model has a token of its own, for a template that writes no calls."""
    return next((form.name for form in FORMS.values() if form.token and form.token in added_tokens), None)


def read_calls(text: str, form: str, parameters: Mapping[str, Any]) -> tuple[str, list[Call]]:
    """Split an answer into its words and its calls.

    An answer with a broken call, or with one of a function that was not offered, is all words: nothing of it is lost.
    Time is linear in the text; nothing is raised.

    Args:
        text: The answer, special tokens included.
        form: The name of a form.
        parameters: Name -> JSON schema of the parameters, for the functions that were offered.

    Returns:
        The words before, between and behind the calls, and the calls; ``text`` and no calls if there are none.
    """
    try:
        words, calls = FORMS[form].read(text, parameters)
    except NoCallsError:
        return text, []
    return (words.strip(), calls) if _are_offered(calls, parameters) else (text, [])


def read_message_calls(messages: Sequence[Message], parameters: Mapping[str, Any]) -> list[Call]:
    """The calls of an answer in messages; none if one of them is broken, or of a function that was not offered.

    Args:
        messages: The answer's messages.
        parameters: As in ``read_calls``.
    """
    try:
        calls = calls_of(messages)[1]
    except NoCallsError:
        return []
    return calls if _are_offered(calls, parameters) else []


def _are_offered(calls: Sequence[Call], parameters: Mapping[str, Any]) -> bool:
    return bool(calls) and all(call.name in parameters for call in calls)
