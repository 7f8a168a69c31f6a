"""The grammar of a call's arguments where each stands in tags of its own, as Qwen3-Coder writes them.

A text stands between its tags as it is; everything else is JSON. Source: the chat template of Qwen3-Coder.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.engine.grammar_text import json_options
from helix_jobs.engine.multiples import with_all_spellings
from helix_jobs.engine.text.call_forms import is_text
from helix_jobs.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# JSON as Python and jinja2's tojson write it: calls in prompts look so, and models learn from them.
JSON_OPTIONS: Final = {**json_options(), "item_separator": ", ", "key_separator": ": "}

_END: Final = "</parameter>"
_NAME: Final = re.compile(r"[^<>\s]+")
_ANNOTATIONS: Final = frozenset({"title", "description", "default", "examples", "$comment", "deprecated"})
_OF_OBJECTS: Final = _ANNOTATIONS | {
    *("type", "properties", "required", "additionalProperties", "$defs", "definitions", "$schema", "$id"),
}
_OF_TEXTS: Final = _ANNOTATIONS | {"type", "enum", "const", "minLength", "maxLength"}
_DEFINITIONS: Final = ("$defs", "definitions")


def tagged_arguments(rule: str, function: str, schema: Mapping[str, Any], added_tokens: Mapping[str, int]) -> list[str]:
    """The rules of a function's arguments in tags: the parameters that its schema names, in the schema's order.

    Args:
        rule: The name of the first rule.
        function: The function's name, for error messages.
        schema: The JSON schema of its parameters.
        added_tokens: Added token -> its id.

    Raises:
        InvalidRequestError: The schema asks for something that this form cannot be held to.
    """
    for word in schema:
        if word not in _OF_OBJECTS and not word.startswith("x-"):
            raise _not_enforced(function, f"the schema's {word}")
    if _END in added_tokens:
        raise _not_enforced(function, f"{_END}, which is a token of this model,")
    if any(not reference.startswith(("#/$defs/", "#/definitions/")) for reference in _references(schema)):
        raise _not_enforced(function, "a $ref that points outside of $defs")
    required = schema.get("required", [])
    properties = schema.get("properties", {})
    properties = {**properties, **{name: {} for name in required if name not in properties}}
    shared = {word: schema[word] for word in _DEFINITIONS if word in schema}
    parts, rules = [], []
    for number, (name, wanted) in enumerate(properties.items()):
        if wanted is False and name not in required:
            continue
        if not _NAME.fullmatch(name):
            raise _not_enforced(function, "a parameter's name with white space or angle brackets")
        part = f"{rule}_{number}"
        parts.append(part if name in required else f"{part}?")
        begin = json.dumps(f"<parameter={name}>\n", ensure_ascii=False)
        if is_text(wanted):
            rules += [f'{part}: {begin} {part.upper()} "\\n"', f"{part.upper()}: {_text_pattern(function, wanted)}"]
        else:
            value = {**(wanted if isinstance(wanted, dict) else {} if wanted else {"not": {}}), **shared}
            value_rule = f"%json {json.dumps({**with_all_spellings(value), 'x-guidance': JSON_OPTIONS})}"
            rules += [f'{part}: {begin} {part}_value "\\n{_END}\\n"', f"{part}_value: {value_rule}"]
    return [f"{rule}: {' '.join(parts)}" if parts else f'{rule}: ""', *rules]


def _text_pattern(function: str, schema: Mapping[str, Any]) -> str:
    """A terminal for a text and its end tag. The text does not hold the tag, with which a reader ends it."""
    for word in schema:
        if word not in _OF_TEXTS and not word.startswith("x-"):
            raise _not_enforced(function, f"{word} of a text")
    options = [schema["const"]] if "const" in schema else schema.get("enum")
    if options is not None:
        texts = [option for option in options if isinstance(option, str) and _END not in option]
        if "const" in schema and "enum" in schema:
            texts = [text for text in texts if text in schema["enum"]]
        if not texts:
            raise _not_enforced(function, "a text that may have no value")
        text = "|".join(map(_literal, texts))
    else:
        text = f"(?s:.{{{schema.get('minLength', 0)},{schema.get('maxLength', '')}}})"
    end = _literal(_END)
    return f"/({text})\\n{end}/ & ~/(?s:.*){end}(?s:.+)/"


def _literal(text: str) -> str:
    """A regular expression of this text, for use between slashes."""
    escaped = re.sub(r"[\\.+*?()|\[\]{}^$/#&~-]", lambda found: f"\\{found[0]}", text)
    return escaped.replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")


def _references(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        for name, inner in value.items():
            if name == "$ref" and isinstance(inner, str):
                yield inner
            yield from _references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _references(inner)


def _not_enforced(function: str, what: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"tool_choice: {function}: {what} cannot be enforced in the form in which this model writes calls; "
        "simplify the parameters, or give auto or none"
    )
