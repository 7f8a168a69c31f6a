"""The three accepted line forms -> the request that is stored. Pure functions over parsed JSON.

1. ``{"prompt": "..."}``: the text as it is, no chat template.
2. ``{"messages": [...]}``: chat messages, rendered with the model's chat template.
3. An OpenAI Batch line: ``custom_id``, ``method``, ``url``, ``body``.

Forms 1 and 2 take sampling fields beside the prompt, form 3 inside ``body``; all take ``custom_id``, ``priority`` and
``metadata`` beside it.

Trade-off: a field that is not known is refused, not ignored. That makes a person edit a file now and then, but a
misspelt ``max_token`` never costs a night of wrong answers.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.engine.sampling_params import SAMPLING_FIELDS, SamplingParams
from helix_jobs.errors import InvalidFieldError
from helix_jobs.jobs.chat_fields import check_chat_template_kwargs, check_last_role
from helix_jobs.jobs.limits import NO_LIMITS, Limits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

CHAT_ENDPOINT: Final = "/v1/chat/completions"
COMPLETION_ENDPOINT: Final = "/v1/completions"
ENDPOINTS: Final = (CHAT_ENDPOINT, COMPLETION_ENDPOINT)

# Postgres indexes custom_id in a B-tree, whose rows end at 2,704 bytes; 512 characters are at most 2,048.
MAX_CUSTOM_ID_CHARS: Final = 512
MAX_METADATA_DEPTH: Final = 32
MAX_PRIORITY: Final = 9
WHOLE_LINE: Final = "(line)"

_ROLES: Final = ("system", "developer", "user", "assistant")
_COMMON_FIELDS: Final = frozenset({"custom_id", "priority", "metadata"})
_QUESTION_FIELDS: Final = frozenset({"prompt", "messages", "chat_template_kwargs"})
_NATIVE_FIELDS: Final = _COMMON_FIELDS | SAMPLING_FIELDS | _QUESTION_FIELDS
_OPENAI_FIELDS: Final = _COMMON_FIELDS | {"method", "url", "body"}
# Fields of an OpenAI body that say nothing about the answer's text; accepted, and all but the model not stored.
_BODY_HARMLESS: Final = frozenset(
    {
        "model",
        "metadata",
        "user",
        "store",
        "service_tier",
        "stream_options",
        "parallel_tool_calls",
        "prompt_cache_key",
        "safety_identifier",
    }
)
# Fields of an OpenAI body that would change the answer in a way Helix does not offer, with the values that, like null,
# ask for nothing.
_BODY_NEUTRAL: Final[Mapping[str, tuple[Any, ...]]] = {
    "n": (1,),
    "best_of": (1,),
    "stream": (False,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "echo": (False,),
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": (),
    "verbosity": (),
    "web_search_options": (),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
}
_BODY_FIELDS: Final = (
    SAMPLING_FIELDS | _BODY_HARMLESS | frozenset(_BODY_NEUTRAL) | _QUESTION_FIELDS | {"max_completion_tokens"}
)
# What other programs call our fields, and fields that mean something elsewhere.
_HINTS: Final[Mapping[str, str]] = {
    "max_new_tokens": "use max_tokens",
    "max_completion_tokens": "use max_tokens",
    "max_length": "use max_tokens (it counts new tokens only)",
    "num_predict": "use max_tokens",
    "n_predict": "use max_tokens",
    "text": "use prompt",
    "input": "use prompt or messages",
    "instruction": "use prompt or messages",
    "conversations": "use messages with role and content",
    "id": "use custom_id",
    "key": "use custom_id",
    "stop_sequences": "use stop",
    "do_sample": "remove it; temperature 0 is greedy",
    "model": "remove it; the worker's target model answers every job",
    "n": "remove it; write one line per answer wanted",
    "add_generation_prompt": "remove it; an answer is a turn of its own",
    "continue_final_message": "remove it; to have a beginning continued, submit it as a prompt",
    "enable_thinking": 'use chat_template_kwargs, as in {"enable_thinking": false}',
}
_KINDS: Final[Mapping[type, str]] = {
    type(None): "null",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    str: "a string",
    list: "a list",
    dict: "an object",
}
_MESSAGE_FIELDS: Final = frozenset({"role", "content", "name"})


@dataclass(frozen=True, slots=True)
class ParsedLine:
    """One accepted line. ``request`` is what ``jobs.request`` stores, but for a derived seed."""

    custom_id: str | None
    priority: int
    request: dict[str, Any]


def parse_line_object(values: object, defaults: SamplingParams, limits: Limits = NO_LIMITS) -> ParsedLine:
    """Turn one line's parsed JSON into a stored request within the limits.

    Raises:
        InvalidFieldError: Names the field, the reason and the remedy.
    """
    if not isinstance(values, dict):
        remedy = 'give one object a line, such as {"prompt": "..."}'
        if isinstance(values, list):
            remedy += "; an array becomes lines with: jq -c '.[]'"
        raise InvalidFieldError(WHOLE_LINE, f"is {kind(values)}, not an object", remedy)
    if "body" in values or "url" in values or "method" in values:
        parsed = _openai_line(values, defaults)
        limits.check_request(parsed.request, "body.")
    else:
        parsed = _native_line(values, defaults)
        limits.check_request(parsed.request)
    return parsed


def _native_line(values: dict[str, Any], defaults: SamplingParams) -> ParsedLine:
    _refuse_unknown(values, _NATIVE_FIELDS)
    request = _question(values)
    request["sampling"] = _sampling(values, defaults)
    request["metadata"] = _metadata(values.get("metadata"))
    return ParsedLine(_custom_id(values), _priority(values), request)


def _openai_line(values: dict[str, Any], defaults: SamplingParams) -> ParsedLine:
    for name in values:
        if name in _BODY_FIELDS and name not in _OPENAI_FIELDS:
            raise InvalidFieldError(name, "stands beside body", "move it into body")
    _refuse_unknown(values, _OPENAI_FIELDS)
    method, url, body = values.get("method", "POST"), values.get("url"), values.get("body")
    if method != "POST":
        raise InvalidFieldError("method", "is not POST", 'give "POST"')
    if url not in ENDPOINTS:
        reason = "is missing" if url is None else f"is {_short(url)}" if isinstance(url, str) else f"is {kind(url)}"
        raise InvalidFieldError("url", reason, f"give {' or '.join(ENDPOINTS)}")
    if not isinstance(body, dict):
        raise InvalidFieldError("body", _absent_or_kind(values, "body"), "give the request as an object")
    _refuse_unknown(body, _BODY_FIELDS, "body.")
    _refuse_unsupported(body)
    wanted, other = ("messages", "prompt") if url == CHAT_ENDPOINT else ("prompt", "messages")
    if body.get(other) is not None:
        raise InvalidFieldError(f"body.{other}", f"does not belong to {url}", f"give {wanted}")
    if body.get(wanted) is None:
        raise InvalidFieldError(f"body.{wanted}", "is missing", f"{url} needs {wanted}")
    request = _question(body, "body.")
    request["sampling"] = _within("body.", lambda: _sampling(_one_max_tokens(body), defaults))
    # OpenAI's own place for metadata is the body; ours, beside it, wins.
    request["metadata"] = {**_metadata(body.get("metadata"), "body."), **_metadata(values.get("metadata"))}
    request["endpoint"] = url
    model = body.get("model")
    if model is not None:
        if not isinstance(model, str):
            raise InvalidFieldError("body.model", f"is {kind(model)}", "give a string or remove it")
        request["model"] = model
    return ParsedLine(_custom_id(values), _priority(values), request)


def _question(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The prompt or the messages, whichever is given."""
    prompt, messages = values.get("prompt"), values.get("messages")
    if prompt is not None and messages is not None:
        raise InvalidFieldError(f"{prefix}messages", "stands beside prompt", "give one of the two")
    arguments = check_chat_template_kwargs(values.get("chat_template_kwargs"), f"{prefix}chat_template_kwargs")
    if prompt is not None:
        if arguments:
            remedy = "remove it, or give messages: a prompt goes through no chat template"
            raise InvalidFieldError(f"{prefix}chat_template_kwargs", "stands beside prompt", remedy)
        return {"prompt": check_prompt(prompt, prefix)}
    if messages is not None:
        checked = check_messages(messages, prefix)
        return {"messages": checked, "chat_template_kwargs": arguments} if arguments else {"messages": checked}
    if "prompt" in values or "messages" in values:
        name = "prompt" if "prompt" in values else "messages"
        raise InvalidFieldError(prefix + name, "is null", "give a text or messages")
    raise InvalidFieldError(
        f"{prefix}prompt", "is missing", "give prompt, messages, or an OpenAI Batch line (custom_id, method, url, body)"
    )


def check_prompt(prompt: object, prefix: str = "") -> str:
    """Return the prompt if it is a text with something in it.

    Raises:
        InvalidFieldError: It is not.
    """
    field = f"{prefix}prompt"
    if isinstance(prompt, list):
        raise InvalidFieldError(field, "is a list", "give one string; write one line per prompt")
    if not isinstance(prompt, str):
        raise InvalidFieldError(field, f"is {kind(prompt)}", "give a string")
    if not prompt.strip():
        raise InvalidFieldError(field, "is empty", "give a text to continue")
    return prompt


def check_messages(messages: object, prefix: str = "") -> list[dict[str, str]]:
    """Return the messages in their stored form: role, content as one string, name if given.

    Content parts are joined by a newline, as vLLM does for templates that take text. ``developer`` becomes ``system``,
    the name the chat templates of open models know it by.

    Raises:
        InvalidFieldError: A message is malformed, all are empty, or the last is the assistant's.
    """
    field = f"{prefix}messages"
    if not isinstance(messages, list):
        raise InvalidFieldError(
            field, f"is {kind(messages)}", 'give a list such as [{"role": "user", "content": "..."}]'
        )
    plain = [_message(message, f"{field}[{index}]") for index, message in enumerate(messages)]
    if not any(message["content"].strip() for message in plain):
        raise InvalidFieldError(field, "is empty", "give at least one message with a text")
    check_last_role(plain[-1]["role"], f"{field}[{len(plain) - 1}].role")
    return plain


def _message(message: object, field: str) -> dict[str, str]:
    if not isinstance(message, dict):
        raise InvalidFieldError(
            field, f"is {kind(message)}", 'give an object such as {"role": "user", "content": "..."}'
        )
    for name, value in message.items():
        # Messages copied from an OpenAI answer carry refusal: null, annotations: [] and the like.
        if name not in _MESSAGE_FIELDS and value not in (None, [], {}):
            raise InvalidFieldError(f"{field}.{_short(name)}", "is not supported", "give role, content and name only")
    role, name = message.get("role"), message.get("name")
    if not isinstance(role, str) or role not in _ROLES:
        reason = f"is {_short(role)}" if isinstance(role, str) else _absent_or_kind(message, "role")
        raise InvalidFieldError(f"{field}.role", reason, f"give one of {', '.join(_ROLES)}")
    plain = {"role": "system" if role == "developer" else role, "content": _content(message, f"{field}.content")}
    if name is not None:
        if not isinstance(name, str):
            raise InvalidFieldError(f"{field}.name", f"is {kind(name)}", "give a string or remove it")
        plain["name"] = name
    return plain


def _content(message: Mapping[str, Any], field: str) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidFieldError(field, _absent_or_kind(message, "content"), "give a string or a list of text parts")
    texts: list[str] = []
    for index, part in enumerate(content):
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise InvalidFieldError(f"{field}[{index}]", "is no text part", 'give {"type": "text", "text": "..."}')
        texts.append(part["text"])
    return "\n".join(texts)


def _sampling(values: Mapping[str, Any], defaults: SamplingParams) -> dict[str, Any]:
    given = {name: value for name, value in values.items() if name in SAMPLING_FIELDS and value is not None}
    if not given:
        return defaults.to_dict()
    if any(isinstance(value, list | dict) for value in given.values()):
        return SamplingParams.from_mapping(given, defaults).to_dict()
    # The types belong to the key: 1, 1.0 and True are equal in Python, and not in JSON.
    key = tuple((name, type(value), value) for name, value in given.items())
    types = tuple([type(getattr(defaults, name)) for name in SAMPLING_FIELDS])
    return dict(_scalar_sampling(key, defaults, types))


@lru_cache(maxsize=256)
def _scalar_sampling(
    given: tuple[tuple[str, type, Any], ...],
    defaults: SamplingParams,
    _types: tuple[type, ...],
) -> dict[str, Any]:
    """Most lines of a file ask for the same; checking that once makes reading a file faster by a fifth."""
    return SamplingParams.from_mapping({name: value for name, _, value in given}, defaults).to_dict()


def _one_max_tokens(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """OpenAI's two names for one number."""
    new, old = body.get("max_completion_tokens"), body.get("max_tokens")
    if new is None:
        return body
    if old is not None and old != new:
        raise InvalidFieldError("max_tokens", "differs from max_completion_tokens", "give one of the two")
    try:
        SamplingParams.from_mapping({"max_tokens": new})
    except InvalidFieldError as error:
        raise InvalidFieldError("max_completion_tokens", error.reason, error.remedy) from error
    return {**body, "max_tokens": new}


def _refuse_unsupported(body: Mapping[str, Any]) -> None:
    for name in _BODY_NEUTRAL.keys() & body.keys():
        value = body[name]
        # True == 1 and False == 0 in Python, not in JSON.
        if value is None or any(type(value) is type(neutral) and value == neutral for neutral in _BODY_NEUTRAL[name]):
            continue
        raise InvalidFieldError(f"body.{name}", "asks for something Helix does not do", _HINTS.get(name, "remove it"))


def _refuse_unknown(values: Iterable[str], known: frozenset[str], prefix: str = "") -> None:
    for name in values:
        if name in known:
            continue
        near = difflib.get_close_matches(name[:64], known, n=1)
        remedy = _HINTS.get(name) or (f"did you mean {near[0]}?" if near else "remove it")
        raise InvalidFieldError(f"{prefix}{_short(name)}", "is not a known field", remedy)


def _custom_id(values: Mapping[str, Any]) -> str | None:
    custom_id = values.get("custom_id")
    if custom_id is None:
        return None
    remedy = f"give a string of 1 to {MAX_CUSTOM_ID_CHARS} characters or remove it"
    if not isinstance(custom_id, str):
        raise InvalidFieldError("custom_id", f"is {kind(custom_id)}", remedy)
    if not 1 <= len(custom_id) <= MAX_CUSTOM_ID_CHARS:
        raise InvalidFieldError("custom_id", f"has {len(custom_id)} characters", remedy)
    return custom_id


def _priority(values: Mapping[str, Any]) -> int:
    priority = values.get("priority")
    if priority is None:
        return 0
    remedy = f"give an integer from 0 to {MAX_PRIORITY}; higher runs first"
    if isinstance(priority, bool) or not isinstance(priority, int):
        raise InvalidFieldError("priority", f"is {kind(priority)}", remedy)
    if not 0 <= priority <= MAX_PRIORITY:
        raise InvalidFieldError("priority", "is out of range", remedy)
    return priority


def _metadata(value: object, prefix: str = "") -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidFieldError(f"{prefix}metadata", f"is {kind(value)}", "give an object")
    level: list[Any] = [value]
    for _ in range(MAX_METADATA_DEPTH):
        level = [
            item
            for container in level
            for item in (container.values() if isinstance(container, dict) else container)
            if isinstance(item, dict | list)
        ]
        if not level:
            return value
    raise InvalidFieldError(f"{prefix}metadata", "is nested too deeply", f"give at most {MAX_METADATA_DEPTH} levels")


def _within(prefix: str, decide: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Put the path in front of a field name that an inner check could not know."""
    try:
        return decide()
    except InvalidFieldError as error:
        raise InvalidFieldError(prefix + error.field, error.reason, error.remedy) from error


def _absent_or_kind(values: Mapping[str, Any], name: str) -> str:
    return f"is {kind(values[name])}" if name in values else "is missing"


def _short(text: str) -> str:
    """A name from the file as it may stand in a message: one line, cut."""
    cut = text if len(text) <= 40 else text[:37] + "..."  # noqa: PLR2004  (room in a table)
    return cut if cut.isprintable() and cut else ascii(cut)


def kind(value: object) -> str:
    """Name a JSON type the way the person who wrote the file would."""
    return _KINDS.get(type(value), type(value).__name__)
