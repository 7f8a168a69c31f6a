"""The grammar of an answer that must call functions, in a model's own form of calls."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from helix_jobs.engine.constraint import Constraint
from helix_jobs.engine.multiples import with_all_spellings
from helix_jobs.engine.text.call_forms import FORMS
from helix_jobs.engine.text.grammar_rules import JSON_OPTIONS, spelt
from helix_jobs.engine.text.tagged_arguments import tagged_arguments
from helix_jobs.engine.text.value_grammar import argument_rules

if TYPE_CHECKING:
    from collections.abc import Mapping

    from helix_jobs.engine.chat_options import ToolUse
    from helix_jobs.engine.text.calls import CallForm


def call_constraint(
    tools: ToolUse, form: str, added_tokens: Mapping[str, int], *, in_thought: bool = False
) -> Constraint:
    """What an answer must be that calls one of the functions, or the one that is named.

    Args:
        tools: The functions, of which some must be called.
        form: The name of the model's form of calls.
        added_tokens: Added token -> its id. The grammar library never spells these, so the grammar names their ids.
        in_thought: The prompt ends within a thought; matters only where the grammar says how the answer thinks.

    Raises:
        InvalidRequestError: A function's parameters cannot be enforced in the form of the model's calls.
    """
    shape = FORMS[form]
    offered = tools.parameters
    names = [tools.only] if tools.only is not None else list(offered)
    separator = shape.separator if tools.is_parallel and tools.only is None else None
    rules = []
    for number, name in enumerate(names):
        before = spelt(f"{shape.before}{_json_inside(name)}{shape.between}", added_tokens)
        after = spelt(shape.after, added_tokens)
        rules.append(f"call_{number}: {before} arguments_{number} {after}".rstrip())
        rules += _arguments(f"arguments_{number}", name, offered[name], shape, added_tokens)
    call = " | ".join(f"call_{number}" for number in range(len(names)))
    more = "" if separator is None else _more_calls(separator, added_tokens)
    opens, closes = (spelt(text, added_tokens) for text in (shape.opens, shape.closes))
    if shape.thought is not None:
        begin, end = (spelt(text, added_tokens) for text in shape.thought)
        rules += [f"thought: {begin} THOUGHT {end}", "THOUGHT: /(?s:.*)/"]
        opens = f"THOUGHT {end} thought*" if in_thought else "thought*"
    start = " ".join(filter(None, (opens, "call", more, closes)))
    return Constraint("grammar", "\n".join([f"start: {start}", f"call: {call}", *rules]) + "\n")


def _arguments(
    rule: str,
    name: str,
    schema: Any,  # noqa: ANN401  (any JSON value may be a schema)
    shape: CallForm,
    added_tokens: Mapping[str, int],
) -> list[str]:
    """The rules of one function's arguments."""
    if shape.tags is not None:
        return tagged_arguments(rule, name, schema, shape.tags, added_tokens)
    if shape.syntax is not None:
        return argument_rules(rule, name, schema, shape.syntax, added_tokens)
    return [f"{rule}: %json {json.dumps(_object_schema(schema))}"]


def _more_calls(separator: str, added_tokens: Mapping[str, int]) -> str:
    """Any number of further calls. An answer may also end behind a blank separator.

    A model that ends its calls with a line break would otherwise have to call again and again.
    """
    if not separator:
        return "call*"
    text = spelt(separator, added_tokens)
    return f"({text} call)* {text}?" if separator.isspace() else f"({text} call)*"


def _object_schema(schema: Any) -> dict[str, Any]:  # noqa: ANN401  (any JSON value may be a schema)
    """The schema of a call's arguments, which are an object in any case."""
    plain = dict(with_all_spellings(schema)) if isinstance(schema, dict) else {}
    plain.setdefault("type", "object")
    return {**plain, "x-guidance": JSON_OPTIONS}


def _json_inside(name: str) -> str:
    return json.dumps(name)[1:-1]
