"""The grammar of an answer that must call functions, in a model's own form of calls."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from helix_jobs.engine.constraint import Constraint
from helix_jobs.engine.multiples import with_all_spellings
from helix_jobs.engine.text.added_tokens import split_at_tokens
from helix_jobs.engine.text.call_forms import FORMS
from helix_jobs.engine.text.tagged_arguments import JSON_OPTIONS, tagged_arguments
from helix_jobs.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from helix_jobs.engine.chat_options import ToolUse


def call_constraint(tools: ToolUse, form: str, added_tokens: Mapping[str, int]) -> Constraint:
    """What an answer must be that calls one of the functions, or the one that is named.

    Args:
        tools: The functions, of which some must be called.
        form: The name of the model's form of calls.
        added_tokens: Added token -> its id. The grammar library never spells these, so the grammar names their ids.

    Raises:
        InvalidRequestError: The form of the model's calls, or a function's parameters in it, cannot be enforced.
    """
    shape = FORMS[form]
    if not shape.before:
        raise InvalidRequestError(
            "tool_choice: the form in which this model writes calls cannot be enforced; give auto or none"
        )
    offered = tools.parameters
    names = [tools.only] if tools.only is not None else list(offered)
    separator = shape.separator if tools.is_parallel and tools.only is None else None
    rules = []
    for number, name in enumerate(names):
        before = _text(f"{shape.before}{_json_inside(name)}{shape.between}", added_tokens)
        after = _text(shape.after, added_tokens)
        rules.append(f"call_{number}: {before} arguments_{number} {after}".rstrip())
        if shape.is_tagged:
            rules += tagged_arguments(f"arguments_{number}", name, offered[name], added_tokens)
        else:
            rules.append(f"arguments_{number}: %json {json.dumps(_object_schema(offered[name]))}")
    call = " | ".join(f"call_{number}" for number in range(len(names)))
    more = "" if separator is None else _more_calls(_text(separator, added_tokens), is_blank=separator.isspace())
    opens, closes = (_text(text, added_tokens) for text in (shape.opens, shape.closes))
    if shape.thought is not None:
        begin, end = (_text(text, added_tokens) for text in shape.thought)
        rules += [f"thought: {begin} THOUGHT {end}", "THOUGHT: /(?s:.*)/"]
        opens = "thought*"
    start = " ".join(filter(None, (opens, "call", more, closes)))
    return Constraint("grammar", "\n".join([f"start: {start}", f"call: {call}", *rules]) + "\n")


def _more_calls(separator: str, *, is_blank: bool) -> str:
    """Any number of further calls. An answer may also end behind a blank separator.

    A model that ends its calls with a line break would otherwise have to call again and again.
    """
    return f"({separator} call)* {separator}?" if is_blank else f"({separator} call)*"


def _object_schema(schema: Any) -> dict[str, Any]:  # noqa: ANN401  (any JSON value may be a schema)
    """The schema of a call's arguments, which are an object in any case."""
    plain = dict(with_all_spellings(schema)) if isinstance(schema, dict) else {}
    plain.setdefault("type", "object")
    return {**plain, "x-guidance": JSON_OPTIONS}


def _json_inside(name: str) -> str:
    return json.dumps(name)[1:-1]


def _text(text: str, added_tokens: Mapping[str, int]) -> str:
    """A text in the grammar: literals, and the ids of the added tokens in it."""
    parts = split_at_tokens(text, added_tokens)
    return " ".join(f"<[{added_tokens[part]}]>" if part in added_tokens else json.dumps(part) for part in parts)
