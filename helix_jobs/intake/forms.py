"""Turn the accepted line forms into the stored request. Pure functions over parsed JSON.

1. ``{"prompt": "..."}``: the text as it is, no chat template.
2. ``{"messages": [...]}``: chat messages, rendered with the model's chat template.
3. An OpenAI Batch line: ``custom_id``, ``method``, ``url``, ``body``.

Forms 1 and 2 take sampling fields beside the prompt, form 3 inside ``body``; all take ``custom_id``, ``priority``,
``metadata`` and ``accept`` beside it.

Trade-off: an unknown field is refused, not ignored. A person must edit a file now and then, but a misspelt
``max_token`` never costs a night of wrong answers.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.bounds import MAX_PRIORITY
from helix_jobs.errors import InvalidFieldError
from helix_jobs.intake.acceptance_field import AcceptanceReader
from helix_jobs.intake.chat_fields import check_chat, refuse_beside_prompt
from helix_jobs.intake.choice_fields import read_choices, read_sampling_beside_choices
from helix_jobs.intake.combinations import (
    ACCEPT_AND_CHOICES,
    ACCEPT_AND_SCORED_PROMPT,
    ECHO_AND_MESSAGES,
    ECHO_AND_TOKEN_IDS,
    ENDLESS_AND_FORM,
    FIELD_AND_BODY,
    FORM_AND_SCORED_PROMPT,
    FORM_AND_TOOLS,
    MESSAGES_AND_PROMPT,
    TOKEN_IDS_AND_CHOICES,
    TOOLS_AND_DEFAULT_FORM,
)
from helix_jobs.intake.constraint_fields import CONSTRAINT_FIELDS, read_constraint
from helix_jobs.intake.foreign_forms import MARKS, translate, translate_responses
from helix_jobs.intake.known_fields import (
    BODY_FIELDS,
    NATIVE_FIELDS,
    OPENAI_FIELDS,
    PLAIN_FIELDS,
    refuse_unknown,
    refuse_unsupported,
)
from helix_jobs.intake.line_faults import WHOLE_LINE, Faults, kind, short
from helix_jobs.intake.numbers import whole
from helix_jobs.intake.texts import check_messages, check_prompt
from helix_jobs.intake.truncation_fields import read_truncation
from helix_jobs.json_depth import is_deeper
from helix_jobs.new_job import NewJob

if TYPE_CHECKING:
    from collections.abc import Mapping

    from helix_jobs.acceptance.rule import AcceptanceRule
    from helix_jobs.engine.constraint import Constraint
    from helix_jobs.intake.limits import Limits
    from helix_jobs.intake.sampling_fields import SamplingReader

CHAT_ENDPOINT: Final = "/v1/chat/completions"
COMPLETION_ENDPOINT: Final = "/v1/completions"
ENDPOINTS: Final = (CHAT_ENDPOINT, COMPLETION_ENDPOINT)

# Postgres indexes custom_id in a B-tree, whose rows end at 2,704 bytes; 512 characters are at most 2,048.
MAX_CUSTOM_ID_CHARS: Final = 512
MAX_METADATA_DEPTH: Final = 32
_MISSING: Final = "is missing"
_NO_RULE: Final = AcceptanceReader()
# Also accepts a whole address, Azure's path without a version or with its deployment, and a slash at the end.
_CHAT_URL: Final = re.compile(r"(?:https?://[^/?#\s]+)?(?:/[\w.-]+)*/chat/completions/?(?:\?[^\s#]*)?")
_COMPLETION_URL: Final = re.compile(r"(?:https?://[^/?#\s]+)?(?:/(?!chat/)[\w.-]+)*/completions/?(?:\?[^\s#]*)?")


def parse_job(
    values: object,
    sampling: SamplingReader,
    limits: Limits,
    *,
    line: int,
    size: int,
    acceptance: AcceptanceReader = _NO_RULE,
    constraint: Constraint | None = None,
) -> NewJob:
    """Turn one line's parsed JSON into a job within the limits.

    Args:
        values: The line's parsed JSON.
        sampling: Reads the sampling fields.
        limits: How large the request may be.
        line: The line's number.
        size: The line's size in bytes.
        acceptance: Reads the acceptance rule.
        constraint: The form of the answer, if the line gives none.

    Raises:
        InvalidFieldError: Names the field, the reason and the remedy.
    """
    if not isinstance(values, dict):
        remedy = 'give one object a line, such as {"prompt": "..."}'
        if isinstance(values, list):
            remedy += "; an array becomes lines with: jq -c '.[]'"
        raise InvalidFieldError(WHOLE_LINE, f"is {kind(values)}, not an object", remedy)
    foreign = None if values.keys().isdisjoint(MARKS) else translate(values)
    if foreign is None and "url" in values and values["url"] not in ENDPOINTS:
        foreign = translate_responses(values)
    own = values if foreign is None else foreign.values
    faults = Faults()
    is_openai = "body" in own or "url" in own or "method" in own
    try:
        read = _openai_request if is_openai else _native_request
        request = read(own, sampling, constraint, faults)
        custom_id = faults.of(_custom_id, own) if "custom_id" in own else None
        priority = faults.of(_priority, own) if "priority" in own else 0
        rule = faults.of(_rule, own, request, acceptance) if acceptance.concerns(own) else None
        faults.settle()
        limits.check_request(request, "body." if is_openai else "")
        if rule is not None:
            acceptance.check(rule, request)
            request["accept"] = rule.to_dict()
    except InvalidFieldError as error:
        if foreign is None:
            raise
        raise foreign.renamed(error) from error
    if (seed := request["sampling"].get("seed")) is not None:
        request["seed"] = seed
    return NewJob(line=line, custom_id=custom_id, request=request, priority=priority, size=size)


def _rule(values: Mapping[str, Any], request: Mapping[str, Any], acceptance: AcceptanceReader) -> AcceptanceRule | None:
    """The rule of a line; none where options or the prompt are scored, which another try would not change."""
    if "score_choices" in request:
        combination = ACCEPT_AND_CHOICES
    elif _scores_prompt_alone(request):
        combination = ACCEPT_AND_SCORED_PROMPT
    else:
        return acceptance.read(values)
    if values.get("accept") not in (None, False):
        raise combination.error("accept")
    return None


def _scores_prompt_alone(request: Mapping[str, Any]) -> bool:
    return (request.get("sampling") or {}).get("max_tokens") == 0


def _native_request(
    values: dict[str, Any], sampling: SamplingReader, constraint: Constraint | None, faults: Faults
) -> dict[str, Any]:
    if not values.keys() <= PLAIN_FIELDS:
        refuse_unknown(values, NATIVE_FIELDS, faults)
        refuse_unsupported(values, faults)
    request = _request(values, sampling, faults)
    _add_constraint(request, values, constraint, faults)
    request["metadata"] = faults.of(_metadata, values["metadata"]) if "metadata" in values else {}
    return request


def _openai_request(
    values: dict[str, Any], sampling: SamplingReader, constraint: Constraint | None, faults: Faults
) -> dict[str, Any]:
    if not values.keys() <= OPENAI_FIELDS:
        refuse_unknown(values, NATIVE_FIELDS | OPENAI_FIELDS, faults)
        for name in values:
            if name in BODY_FIELDS and name not in OPENAI_FIELDS:
                faults.add(FIELD_AND_BODY.error(name))
    if values.get("method", "POST") != "POST":
        faults.add(InvalidFieldError("method", "is not POST", 'give "POST"'))
    body = values.get("body")
    if not isinstance(body, dict):
        faults.of(_endpoint, values, {"messages": []})
        faults.add(InvalidFieldError("body", _absent_or_kind(values, "body"), "give the request as an object"))
        return {}
    url = faults.of(_endpoint, values, body)
    refuse_unknown(body, BODY_FIELDS, faults, "body.")
    refuse_unsupported(body, faults, "body.")
    request = _request(body, sampling, faults, "body.", url)
    _add_constraint(request, body, constraint, faults, "body.")
    # OpenAI puts metadata into the body; metadata beside the body takes precedence.
    inner = faults.of(_metadata, body.get("metadata"), "body.")
    outer = faults.of(_metadata, values.get("metadata"))
    if not faults:
        request["metadata"] = {**inner, **outer}
        request["endpoint"] = url
    return request


def _endpoint(values: Mapping[str, Any], body: Mapping[str, Any]) -> str:
    """The endpoint that a line names, or the only one that fits its body: Mistral's and Together's lines name none."""
    url = values.get("url")
    if url in ENDPOINTS:
        return str(url)
    if url is None:
        return COMPLETION_ENDPOINT if "prompt" in body and "messages" not in body else CHAT_ENDPOINT
    if isinstance(url, str):
        if _CHAT_URL.fullmatch(url):
            return CHAT_ENDPOINT
        if _COMPLETION_URL.fullmatch(url):
            return COMPLETION_ENDPOINT
    reason = f"is {short(url)}" if isinstance(url, str) else f"is {kind(url)}"
    raise InvalidFieldError("url", reason, f"give {' or '.join(ENDPOINTS)}")


def _request(
    values: Mapping[str, Any], sampling: SamplingReader, faults: Faults, prefix: str = "", url: str | None = None
) -> dict[str, Any]:
    """The request: prompt or messages and sampling fields. Faults are collected."""
    misspelt = bool(faults)
    try:
        request = _question(values, prefix, url)
    except InvalidFieldError as error:
        request = {}
        # Do not report a misspelt prompt or messages field as missing, too.
        if not (misspelt and error.reason == _MISSING):
            faults.add(error)
    if values.keys() <= PLAIN_FIELDS:
        request["sampling"] = faults.of(sampling.read, values, prefix)
        return request
    reader = sampling.read if values.get("choices") is None else read_sampling_beside_choices
    request["sampling"] = faults.of(reader, values, prefix)
    _add_rare(request, values, faults, prefix)
    if request["sampling"] and "echo" in request["sampling"]:
        faults.of(_check_echo, request, prefix)
    for name in ("model", "adapter"):
        if (value := values.get(name)) is not None:
            if not isinstance(value, str):
                faults.add(InvalidFieldError(f"{prefix}{name}", f"is {kind(value)}", "give a string or remove it"))
            request[name] = value
    return request


def _add_rare(request: dict[str, Any], values: Mapping[str, Any], faults: Faults, prefix: str) -> None:
    """Add what a line says of options to score and of a prompt that is too long. Faults are collected."""
    if (choices := faults.of(read_choices, values, prefix)) is not None:
        request |= choices.to_dict()
    if (truncation := faults.of(read_truncation, values, prefix)) is not None:
        request["truncate_prompt"] = truncation.to_dict()


def _check_echo(request: Mapping[str, Any], prefix: str) -> None:
    """Refuse an echo of a prompt that has no text of its own. ``echo`` is among the sampling fields."""
    if "messages" in request:
        raise ECHO_AND_MESSAGES.error(f"{prefix}echo")
    if "prompt_token_ids" in request and "logprobs" not in request["sampling"]:
        raise ECHO_AND_TOKEN_IDS.error(f"{prefix}echo")


def _add_constraint(
    request: dict[str, Any],
    values: Mapping[str, Any],
    default: Constraint | None,
    faults: Faults,
    prefix: str = "",
) -> None:
    """Add the form of the answer to the request, if the line gives one or the default does. Faults are collected."""
    if default is None and values.keys().isdisjoint(CONSTRAINT_FIELDS):
        return
    is_scored, has_no_text = "score_choices" in request, _scores_prompt_alone(request)
    constraint = faults.of(read_constraint, values, prefix, None if is_scored or has_no_text else default)
    if constraint is None:
        return
    name = next((name for name in values if name in CONSTRAINT_FIELDS and values[name] is not None), "tools")
    if has_no_text:
        faults.add(FORM_AND_SCORED_PROMPT.error(f"{prefix}{name}"))
        return
    if "tools" in request:
        combination = TOOLS_AND_DEFAULT_FORM if name == "tools" else FORM_AND_TOOLS
        faults.add(combination.error(f"{prefix}{name}"))
        return
    if is_scored:  # ``choice_fields`` has refused it
        return
    request["constraint"] = constraint
    if not faults and request["sampling"].get("ignore_eos"):
        faults.add(ENDLESS_AND_FORM.error(f"{prefix}ignore_eos"))


def _question(values: Mapping[str, Any], prefix: str = "", url: str | None = None) -> dict[str, Any]:
    """The prompt or the messages, whichever the line has."""
    prompt, messages = values.get("prompt"), values.get("messages")
    if url is not None:
        wanted, other = ("messages", "prompt") if url == CHAT_ENDPOINT else ("prompt", "messages")
        if values.get(other) is not None:
            raise InvalidFieldError(f"{prefix}{other}", f"does not belong to {url}", f"give {wanted}")
        if values.get(wanted) is None:
            raise InvalidFieldError(f"{prefix}{wanted}", _MISSING, f"{url} needs {wanted}")
    if prompt is not None and messages is not None:
        raise MESSAGES_AND_PROMPT.error(f"{prefix}messages")
    if prompt is not None:
        refuse_beside_prompt(values, prefix)
        return _prompt(check_prompt(prompt, prefix), values, prefix)
    if messages is not None:
        checked = check_messages(messages, prefix)
        return {"messages": checked, **check_chat(values, checked, prefix)}
    if "prompt" in values or "messages" in values:
        name = "prompt" if "prompt" in values else "messages"
        raise InvalidFieldError(prefix + name, "is null", "give a text or messages")
    raise InvalidFieldError(
        f"{prefix}prompt", _MISSING, "give prompt, messages, or an OpenAI Batch line (custom_id, method, url, body)"
    )


def _prompt(prompt: str | list[int], values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """A text, or token ids, under the key by which it is stored."""
    if isinstance(prompt, str):
        return {"prompt": prompt}
    if values.get("choices") is not None:
        raise TOKEN_IDS_AND_CHOICES.error(f"{prefix}prompt")
    return {"prompt_token_ids": prompt}


def _custom_id(values: Mapping[str, Any]) -> str | None:
    custom_id = values.get("custom_id")
    if custom_id is None:
        return None
    remedy = f"give a string of 1 to {MAX_CUSTOM_ID_CHARS} characters or remove it"
    if type(custom_id) is int:
        custom_id = str(custom_id)
    if not isinstance(custom_id, str):
        raise InvalidFieldError("custom_id", f"is {kind(custom_id)}", remedy)
    if not 1 <= len(custom_id) <= MAX_CUSTOM_ID_CHARS:
        raise InvalidFieldError("custom_id", f"has {len(custom_id)} characters", remedy)
    return custom_id


def _priority(values: Mapping[str, Any]) -> int:
    priority = whole(values.get("priority"))
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
    if is_deeper(value, MAX_METADATA_DEPTH):
        remedy = f"give at most {MAX_METADATA_DEPTH} levels"
        raise InvalidFieldError(f"{prefix}metadata", "is nested too deeply", remedy)
    return value


def _absent_or_kind(values: Mapping[str, Any], name: str) -> str:
    return f"is {kind(values[name])}" if name in values else "is missing"
