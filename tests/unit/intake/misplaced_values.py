"""Good lines of every form, and the same lines with another value in one of their places."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from hypothesis import strategies as st

from tests.unit.intake.made_up_values import json_values

if TYPE_CHECKING:
    from collections.abc import Iterator

_PARTS: Final = [{"type": "text", "text": "Name a river"}]
_CHAT: Final = [{"role": "system", "content": "Be brief"}, {"role": "user", "content": _PARTS, "name": "Ada"}]
_SCHEMA: Final = {"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]}
_TOOL: Final = {"type": "function", "function": {"name": "look_up", "description": "Find", "parameters": _SCHEMA}}
_CALL: Final = {"id": "c", "type": "function", "function": {"name": "look_up", "arguments": '{"q": "Elbe"}'}}
_RESULT: Final = {"role": "tool", "tool_call_id": "c", "content": "long"}
GOOD_LINES: Final[tuple[dict[str, Any], ...]] = (
    {
        "prompt": "a",
        "custom_id": "p",
        "priority": 3,
        "metadata": {"k": ["v"]},
        "model": "m",
        "max_tokens": 8,
        "temperature": 0.5,
        "seed": 1,
        "stop": ["x"],
        "stop_token_ids": [1],
        "ignore_eos": False,
        "n": 2,
        "best_of": 2,
        "num_return_sequences": 2,
        "response_format": {
            "type": "json_schema",
            "json_schema": {
                "name": "n",
                "strict": True,
                "schema": {
                    "type": "object",
                    "properties": {
                        "a": {"type": "string", "pattern": "^a", "minLength": 1},
                        "b": {"$ref": "#/$defs/b"},
                    },
                    "required": ["a"],
                    "$defs": {"b": {"anyOf": [{"enum": ["x", 1]}, {"type": "array", "items": {"maximum": 3}}]}},
                },
            },
        },
        "modalities": ["text"],
        "max_completion_tokens": 8,
        "min_tokens": 2,
        "logit_bias": {"5": -1, "7": 0.5},
        "bad_words": ["x", "y z"],
        "allowed_token_ids": [1, 5],
        "include_stop_str_in_output": True,
        "truncate_prompt": {"keep": "end", "tokens": 5},
        "accept": {"schema": {"type": "object"}, "regex": "a+", "min_chars": 1, "not_cut": True, "max_tries": 2},
    },
    {"prompt": "a", "logit_bias": [[5, -1], [7, 0.5]], "truncate_prompt_tokens": -1, "min_new_tokens": 1},
    {"prompt": [[5, 6]], "echo": True, "logprobs": True, "top_logprobs": 2, "max_tokens": 0, "prompt_logprobs": 1},
    {"prompt": "a", "choices": ["yes", "no"], "score_by": "mean", "seed": 1},
    {"messages": _CHAT, "chat_template_kwargs": {"enable_thinking": False, "names": ["a"]}},
    {
        "messages": [*_CHAT, {"role": "assistant", "content": None, "tool_calls": [_CALL]}, _RESULT],
        "tools": [_TOOL],
        "tool_choice": {"type": "function", "function": {"name": "look_up"}},
        "parallel_tool_calls": False,
        "reasoning_effort": "low",
        "enable_thinking": True,
        "max_reasoning_tokens": 8,
    },
    {
        "messages": [*_CHAT, {"role": "assistant", "content": "The", "reasoning_content": "hm"}],
        "continue_final_message": True,
        "add_generation_prompt": False,
    },
    {"custom_id": "o", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": _CHAT, "metadata": {}}},
    {"custom_id": "c", "url": "/v1/completions", "body": {"prompt": "a", "stop": "x", "guided_choice": ["a", "b"]}},
    {"prompt": "a", "structured_outputs": {"regex": "a+", "disable_any_whitespace": True, "whitespace": "compact"}},
    {"custom_id": "r", "url": "/v1/responses", "body": {"input": _CHAT, "instructions": "Be brief", "reasoning": {}}},
    {"url": "/v1/responses", "body": {"input": "a", "text": {"format": {"type": "json_schema", "schema": {}}}}},
    {
        "url": "/v1/responses",
        "body": {
            "input": "Name a river",
            "reasoning": {"effort": "low"},
            "tools": [{"type": "function", "name": "look_up", "parameters": _SCHEMA}],
            "tool_choice": {"type": "function", "name": "look_up"},
        },
    },
    {"custom_id": "a", "params": {"messages": _CHAT[1:], "system": _PARTS, "thinking": {"type": "disabled"}}},
    {
        "custom_id": "b",
        "params": {
            "messages": _CHAT[1:],
            "thinking": {"type": "enabled", "budget_tokens": 8},
            "tools": [{"name": "look_up", "input_schema": _SCHEMA}],
            "tool_choice": {"type": "tool", "name": "look_up", "disable_parallel_tool_use": True},
        },
    },
    {
        "key": "g",
        "request": {
            "contents": [{"role": "user", "parts": [{"text": "Name a river"}]}],
            "systemInstruction": {"parts": [{"text": "Be brief"}]},
            "generationConfig": {
                "thinkingConfig": {"thinkingBudget": 8},
                "topK": 1,
                "temperature": 1,
                "candidateCount": 2,
                "responseJsonSchema": {"type": "null"},
            },
        },
    },
    {"id": "s", "conversations": [{"from": "human", "value": "Name a river"}]},
)
# One of each type, and of those that hold others one that holds what was there and one that holds nothing.
_STRANGERS: Final = (None, True, 2, 2.5, "", "x", [], {}, ["text"], [[]], {"type": "text"}, [{}])


def with_strangers(line: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the line with each of some values in each of its places."""
    for path in _places(line):
        for stranger in _STRANGERS:
            yield _replaced(line, path, stranger)


def _places(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    if path:
        yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, item in inner:
        yield from _places(item, (*path, name))


def _replaced(value: Any, path: tuple[str | int, ...], new: object) -> Any:
    if not path:
        return new
    changed = dict(value) if isinstance(value, dict) else list(value)
    changed[path[0]] = _replaced(value[path[0]], path[1:], new)
    return changed


misplaced = st.sampled_from([(line, path) for line in GOOD_LINES for path in _places(line)]).flatmap(
    lambda place: json_values.map(lambda value: _replaced(*place, value))
)
