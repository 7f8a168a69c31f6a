"""The grammar of a call's arguments where each stands in tags of its own. See ``argument_tags``."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.engine.multiples import with_all_spellings
from helix_jobs.engine.text.argument_tags import is_text
from helix_jobs.engine.text.grammar_rules import ANNOTATIONS, JSON_OPTIONS, literal, not_enforced, spelt

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from helix_jobs.engine.text.argument_tags import ArgumentTags

_NAME: Final = re.compile(r"[^<>\s\"]+")
_OF_OBJECTS: Final = ANNOTATIONS | {
    *("type", "properties", "required", "additionalProperties", "$defs", "definitions", "$schema", "$id"),
}
_OF_TEXTS: Final = ANNOTATIONS | {"type", "enum", "const", "minLength", "maxLength"}
_DEFINITIONS: Final = ("$defs", "definitions")


def tagged_arguments(
    rule: str, function: str, schema: Mapping[str, Any], tags: ArgumentTags, added_tokens: Mapping[str, int]
) -> list[str]:
    """The rules of a function's arguments in tags: the parameters that its schema names, in the schema's order.

    Args:
        rule: The name of the first rule.
        function: The function's name, for error messages.
        schema: The JSON schema of its parameters.
        tags: The form's.
        added_tokens: Added token -> its id.

    Raises:
        InvalidRequestError: The schema asks for something that this form cannot be held to.
    """
    for word in schema:
        if word not in _OF_OBJECTS and not word.startswith("x-"):
            raise not_enforced(function, f"the schema's {word}")
    if any(not reference.startswith(("#/$defs/", "#/definitions/")) for reference in _references(schema)):
        raise not_enforced(function, "a $ref that points outside of $defs")
    required = schema.get("required", [])
    properties = schema.get("properties", {})
    properties = {**properties, **{name: {} for name in required if name not in properties}}
    shared = {word: schema[word] for word in _DEFINITIONS if word in schema}
    parts, rules = [], []
    for number, (name, wanted) in enumerate(properties.items()):
        if wanted is False and name not in required:
            continue
        if not _NAME.fullmatch(name):
            raise not_enforced(function, "a parameter's name with white space, quotation marks or angle brackets")
        part = f"{rule}_{number}"
        parts.append(part if name in required else f"{part}?")
        begin = spelt(f"{tags.before_name}{name}{tags.after_name}", added_tokens)
        if is_text(wanted):
            rules += _text_rules(part, begin, _text_pattern(function, wanted, tags), tags, added_tokens)
        else:
            value = {**(wanted if isinstance(wanted, dict) else {} if wanted else {"not": {}}), **shared}
            value_rule = f"%json {json.dumps({**with_all_spellings(value), 'x-guidance': JSON_OPTIONS})}"
            end = spelt(f"{tags.edge}{tags.end}{tags.behind}", added_tokens)
            rules += [f"{part}: {begin} {part}_value {end}", f"{part}_value: {value_rule}"]
    return [f"{rule}: {' '.join(parts)}" if parts else f'{rule}: ""', *rules]


def _text_pattern(function: str, schema: Mapping[str, Any], tags: ArgumentTags) -> str:
    """A regular expression of the texts of a schema."""
    for word in schema:
        if word not in _OF_TEXTS and not word.startswith("x-"):
            raise not_enforced(function, f"{word} of a text")
    options = [schema["const"]] if "const" in schema else schema.get("enum")
    if options is None:
        return f"(?s:.{{{schema.get('minLength', 0)},{schema.get('maxLength', '')}}})"
    texts = [option for option in options if isinstance(option, str) and tags.end not in option]
    if "const" in schema and "enum" in schema:
        texts = [text for text in texts if text in schema["enum"]]
    if not texts:
        raise not_enforced(function, "a text that may have no value")
    return "|".join(map(literal, texts))


def _text_rules(part: str, begin: str, pattern: str, tags: ArgumentTags, added_tokens: Mapping[str, int]) -> list[str]:
    """The rules of a text and its end tag. The text does not hold the tag, with which a reader ends it."""
    end, name, behind = literal(tags.end), part.upper(), spelt(tags.behind, added_tokens)
    text = f"({pattern}){literal(tags.edge)}"
    if tags.end in added_tokens:
        rule = f"{part}: {begin} {name} {spelt(tags.end, added_tokens)} {behind}"
        return [rule.rstrip(), f"{name}: /{text}/ & ~/(?s:.*){end}(?s:.*)/"]
    # In one terminal: of two, the text's would take the tag as well.
    return [f"{part}: {begin} {name} {behind}".rstrip(), f"{name}: /{text}{end}/ & ~/(?s:.*){end}(?s:.+)/"]


def _references(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        for name, inner in value.items():
            if name == "$ref" and isinstance(inner, str):
                yield inner
            yield from _references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _references(inner)
