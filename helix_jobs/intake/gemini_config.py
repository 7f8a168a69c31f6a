"""Translate Gemini's ``generationConfig`` into our fields: sampling, the form of the answer, and thinking.

Source: the API reference of Gemini's generateContent: GenerationConfig and ThinkingConfig.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from helix_jobs.errors import InvalidFieldError
from helix_jobs.intake.combinations import TWO_FORMS
from helix_jobs.intake.gemini_schema import json_schema
from helix_jobs.intake.gemini_spellings import given_twice, spelled, spellings
from helix_jobs.intake.line_faults import kind, refuse_others, short

if TYPE_CHECKING:
    from collections.abc import Mapping

    from helix_jobs.intake.line_faults import Faults

_SAMPLING: Final[Mapping[str, str]] = {
    "temperature": "temperature",
    "topp": "top_p",
    "topk": "top_k",
    "maxoutputtokens": "max_tokens",
    "stopsequences": "stop",
    "seed": "seed",
    "candidatecount": "n",
    "presencepenalty": "presence_penalty",
    "frequencypenalty": "frequency_penalty",
    "responselogprobs": "logprobs",
    "logprobs": "top_logprobs",
}
_MIME_TYPE: Final = "responsemimetype"
_OPENAPI: Final = "responseschema"
_JSON_SCHEMA: Final = "responsejsonschema"
_FORM_FIELDS: Final = (_MIME_TYPE, _OPENAPI, _JSON_SCHEMA)
_TEXT: Final = "text/plain"
_JSON: Final = "application/json"
_ENUM: Final = "text/x.enum"
_ENUM_REMEDY: Final = 'give {"type": "STRING", "enum": ["...", "..."]}'
# Words of a schema beside its enum that ask nothing of an answer that is one of the enum's texts.
_BESIDE_ENUM: Final = frozenset({"type", "enum", "format", "title", "description", "default", "example"})


def gemini_config(config: Mapping[str, Any], prefix: str, ours: dict[str, Any], faults: Faults) -> dict[str, str]:
    """Move the fields of a generation config; return our names of them with their own paths."""
    names: dict[str, str] = {}
    spelled_as: dict[str, str] = {}
    form: dict[str, tuple[Any, str]] = {}
    for name, value in config.items():
        if value is None:
            continue
        path, plain = f"{prefix}.{short(name)}", name.replace("_", "").lower()
        if spelled_as.setdefault(plain, name) != name:
            faults.add(given_twice(path, short(spelled_as[plain])))
        elif plain in _SAMPLING:
            ours[_SAMPLING[plain]], names[_SAMPLING[plain]] = value, path
        elif plain == "thinkingconfig":
            faults.of(_set_thinking, value, path, ours, names)
        elif plain in _FORM_FIELDS:
            form[plain] = value, path
        else:
            faults.add(InvalidFieldError(path, "asks for something Helix does not do", "remove it"))
    faults.of(_set_form, form, ours, names)
    return names


def _set_form(form: Mapping[str, tuple[Any, str]], ours: dict[str, Any], names: dict[str, str]) -> None:
    """Set the form of the answer from the MIME type and the schema, which may be given in OpenAPI's form."""
    mime_type, mime_path = form.get(_MIME_TYPE, (None, ""))
    if mime_type not in (None, _TEXT, _JSON, _ENUM):
        raise InvalidFieldError(mime_path, "asks for something Helix does not do", f"give {_TEXT}, {_JSON} or {_ENUM}")
    if _OPENAPI in form and _JSON_SCHEMA in form:
        raise TWO_FORMS.error(form[_OPENAPI][1], form[_JSON_SCHEMA][1])
    schema, path = form.get(_OPENAPI) or form.get(_JSON_SCHEMA) or (None, "")
    if mime_type == _ENUM:
        if schema is None:
            raise InvalidFieldError(mime_path, "stands without responseSchema", "give the texts as its enum")
        ours["structured_outputs"] = {"choice": _texts(schema, path)}
        names["structured_outputs.choice"] = f"{path}.enum"
    elif schema is not None:
        if mime_type == _TEXT:
            raise InvalidFieldError(path, f"stands beside {_TEXT}", f"give {_JSON} as the MIME type, or remove it")
        place = "response_format.schema"
        names[place] = path
        if _OPENAPI in form:
            schema = json_schema(schema, path, place, names)
        ours["response_format"] = {"type": "json_schema", "schema": schema}
    elif mime_type == _JSON:
        ours["response_format"] = {"type": "json_object"}


def _texts(schema: object, path: str) -> object:
    """The texts of which an answer is one."""
    if not isinstance(schema, dict):
        raise InvalidFieldError(path, f"is {kind(schema)}", _ENUM_REMEDY)
    refuse_others({name: value for name, value in schema.items() if value is not False}, _BESIDE_ENUM, path)
    if schema.get("type", "STRING") not in ("STRING", "string"):
        raise InvalidFieldError(f"{path}.type", f"stands beside {_ENUM}, which is a text", _ENUM_REMEDY)
    if schema.get("format", "enum") != "enum":
        raise InvalidFieldError(f"{path}.format", "is none that a text of the enum has", 'remove it, or give "enum"')
    if schema.get("enum") is None:
        raise InvalidFieldError(f"{path}.enum", "is missing", _ENUM_REMEDY)
    return schema["enum"]


def _set_thinking(config: object, path: str, ours: dict[str, Any], names: dict[str, str]) -> None:
    """Set the thinking's budget from ``thinkingConfig``, and note its path; -1 leaves it to the model.

    Raises:
        InvalidFieldError: The setting asks for more than a budget.
    """
    if not isinstance(config, dict):
        raise InvalidFieldError(path, f"is {kind(config)}", 'give {"thinkingBudget": 1024}')
    name = spelled(config, "thinkingBudget", path)
    refuse_others(config, {name, *spellings("includeThoughts")}, path)
    names["max_reasoning_tokens"] = f"{path}.{name}"
    if config.get(name) not in (None, -1):
        ours["max_reasoning_tokens"] = config[name]
