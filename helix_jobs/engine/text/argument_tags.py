"""ArgumentTags: how a form writes the arguments of a call one by one; and the reader of such calls.

A text stands between its tags as it is; everything else is JSON. Sources: the chat templates of Qwen3-Coder, Seed-OSS,
GLM-4.5, GLM-4.7 and MiniMax M2.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from helix_jobs.engine.text.calls import Call, NoCallsError, behind, dumped, joined, json_at, skip
from helix_jobs.engine.text.python_calls import value_at

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class ArgumentTags:
    """The tags of one form. In its patterns and tags ``NAME`` stands for a name.

    Attributes:
        call: Regular expression with which a call begins; its group is the function's name.
        call_begin: Text that each call begins with, for a fast search.
        call_ends: Texts that end it; only the last may be missing at the end of an answer.
        around: Regular expression of what stands around all calls and belongs to no words; empty for none.
        before_name: Text before a parameter's name.
        after_name: Text between its name and its value.
        edge: Text between the value and its end tag that is no part of the value.
        end: The end tag.
        behind: Text behind the end tag.
    """

    call: str
    call_begin: str
    call_ends: tuple[str, ...]
    around: str = ""
    before_name: str
    after_name: str
    edge: str = ""
    end: str
    behind: str = ""

    @property
    def parameter(self) -> str:
        """Regular expression of what stands before a value; its group is the parameter's name."""
        # White space in the tags is the template's habit, and models leave it out.
        after = r"\s*".join(map(re.escape, self.after_name.strip().split("\n")))
        line_break = "\n?" if self.after_name.endswith("\n") else ""
        return rf"{re.escape(self.before_name)}([^<>\s\"]+){after}{line_break}"


def read_tagged(text: str, parameters: Mapping[str, Any], tags: ArgumentTags) -> tuple[str, list[Call]]:
    """The words and the calls of an answer.

    Args:
        text: The answer.
        parameters: Name -> JSON schema of the parameters, for the functions that were offered.
        tags: The form's.

    Raises:
        NoCallsError: A call is broken.
    """
    function_at, parameter_at = re.compile(tags.call), re.compile(tags.parameter)
    words, calls, place = [], [], 0
    while (start := text.find(tags.call_begin, place)) >= 0:
        words.append(text[place:start])
        function = function_at.match(text, start)
        if function is None:
            raise NoCallsError
        place = function.end()
        arguments: dict[str, Any] = {}
        schema = parameters.get(function[1])
        while (parameter := parameter_at.match(text, place)) is not None:
            arguments[parameter[1]], end = _value_at(text, parameter.end(), schema, parameter[1], tags)
            place = skip(text, end + len(tags.end))
        for number, end_tag in enumerate(tags.call_ends, 1):
            place = behind(text, place, end_tag, is_needed=number < len(tags.call_ends) or number == 1)
        calls.append(Call(function[1], dumped(arguments)))
    words.append(text[place:])
    return joined([re.sub(tags.around, "", word) for word in words] if tags.around else words), calls


def is_text(schema: object) -> bool:
    """Whether a parameter of this schema stands between its tags as a plain text, without quotation marks."""
    return isinstance(schema, dict) and schema.get("type") == "string"


def _value_at(text: str, place: int, schema: object, name: str, tags: ArgumentTags) -> tuple[object, int]:
    """A parameter's value and where its end tag stands.

    It is a text where its schema wants one, else the JSON that it is, else a text. JSON may hold the end tag. Where the
    schema names another type, a value as Python writes it is taken, too: Seed-OSS' template shows lists so.
    """
    properties = schema.get("properties") if isinstance(schema, dict) else None
    wanted = properties.get(name) if isinstance(properties, dict) else None
    if not is_text(wanted):
        readers = (json_at, _python_at) if isinstance(wanted, dict) and "type" in wanted else (json_at,)
        for read in readers:
            try:
                found, end = read(text, place)
            except NoCallsError:
                continue
            end = skip(text, end)
            if text.startswith(tags.end, end):
                return found, end
    end = text.find(tags.end, place)
    if end < 0:
        raise NoCallsError
    return text[place:end].removesuffix(tags.edge), end


def _python_at(text: str, place: int) -> tuple[Any, int]:
    try:
        return value_at(text, place)
    except (ValueError, RecursionError) as error:
        raise NoCallsError from error
