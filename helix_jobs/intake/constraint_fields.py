"""Convert a line's fields of structured output, in all peers' spellings, to the form that ``jobs.request`` stores.

OpenAI's ``response_format``, vLLM's ``structured_outputs`` and ``guided_*``, and the fields of SGLang and llama.cpp.
What they hold is checked once for each distinct text, so that a file with one schema is read as fast as one without.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

from helix_jobs.engine.constraint import WHITESPACES, Constraint
from helix_jobs.errors import InputError, InvalidFieldError, InvalidFieldsError
from helix_jobs.intake.combinations import TWO_FORMS
from helix_jobs.intake.line_faults import Faults, kind, short

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from helix_jobs.engine.constraint import Kind, Whitespace

CONSTRAINT_FIELDS: Final = frozenset(
    {
        *("response_format", "structured_outputs", "json_schema", "regex", "grammar", "ebnf"),
        *("guided_json", "guided_json_object", "guided_regex", "guided_choice", "guided_grammar"),
        *("guided_whitespace_pattern", "structural_tag"),
    }
)
# Distinct texts whose outcome is kept; each has up to a quarter of a megabyte.
_KEPT_OUTCOMES: Final = 128
_OPENAI_FORMATS: Final = 'give {"type": "json_schema", "json_schema": {"name": "...", "schema": {...}}}'
_OWN_SPACING: Final = 'remove it; for the model\'s own spacing give "whitespace": "model" in structured_outputs'
# Field of a line, or of structured_outputs -> what its value is.
_TOP: Final[Mapping[str, Kind]] = {
    "json_schema": "json_schema",
    "regex": "regex",
    "grammar": "grammar",
    "ebnf": "grammar",
    "guided_json": "json_schema",
    "guided_json_object": "json_object",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
}
_STRUCTURED: Final[Mapping[str, Kind]] = {
    "json": "json_schema",
    "json_object": "json_object",
    "regex": "regex",
    "choice": "choice",
    "grammar": "grammar",
}
# Options of structured_outputs that change nothing here, whichever of these values they have.
_NO_EFFECT: Final[Mapping[str, tuple[Any, ...]]] = {
    "disable_fallback": (True, False),
    "disable_additional_properties": (False,),
}


class _Asked(NamedTuple):
    """A constraint as a line gives it, and the field that gives it."""

    field: str
    kind: Kind
    value: Any
    whitespace: Whitespace = "compact"


class _Outcome(NamedTuple):
    """What the check of one text came to: the text that is stored, or the faults, with paths after the field's own."""

    stored: str
    faults: tuple[InvalidFieldError, ...] = ()


def read_constraint(
    values: Mapping[str, Any], prefix: str = "", default: Constraint | None = None
) -> dict[str, str] | None:
    """Return the stored form of the constraint among a line's fields, or None if there is none.

    Args:
        values: The line's fields.
        prefix: Stands before the name of a field in an error.
        default: Holds for lines that have none of the fields; ``{"type": "text"}`` is such a field.

    Raises:
        InvalidFieldError: A field is wrong, asks for what cannot be kept, or stands beside another constraint.
        InvalidFieldsError: Several are.
    """
    given = (
        []
        if values.keys().isdisjoint(CONSTRAINT_FIELDS)
        else [name for name in values if name in CONSTRAINT_FIELDS and values[name] is not None]
    )
    if not given:
        return None if default is None else default.to_dict()
    faults = Faults()
    asked: list[_Asked] = []
    for name in given:
        asked += faults.of(_asked, name, values[name], f"{prefix}{name}") or ()
    faults.settle()
    if not asked:
        return None
    if len(asked) > 1:
        raise TWO_FORMS.error(asked[1].field, asked[0].field)
    return _checked(asked[0]).to_dict()


def default_constraint(response_format: Mapping[str, Any] | None) -> Constraint | None:
    """The constraint for lines that give none, from a value of the field ``response_format``.

    Raises:
        InputError: It is wrong; the message names the path, the reason and the remedy.
    """
    try:
        stored = read_constraint({"response_format": response_format})
    except InvalidFieldError as error:
        raise InputError(str(error)) from error
    return None if stored is None else Constraint.from_mapping(stored)


def checked_schema(schema: dict[str, Any], field: str) -> dict[str, Any]:
    """A JSON schema that some part of an answer is to be held to, without the words that ask for nothing.

    Raises:
        InvalidFieldError: A word cannot be kept; the field is its path.
        InvalidFieldsError: Several cannot.
    """
    kept: dict[str, Any] = json.loads(_checked(_Asked(field, "json_schema", schema)).value)
    return kept


def _checked(asked: _Asked) -> Constraint:
    outcome = _outcome(asked.kind, _text(asked))
    if outcome.faults:
        faults = [InvalidFieldError(asked.field + fault.field, fault.reason, fault.remedy) for fault in outcome.faults]
        raise faults[0] if len(faults) == 1 else InvalidFieldsError(tuple(faults))
    return Constraint(asked.kind, outcome.stored, asked.whitespace)


def _asked(name: str, value: Any, field: str) -> tuple[_Asked, ...]:  # noqa: ANN401  (parsed JSON)
    if name == "response_format":
        return _response_format(value, field)
    if name == "structured_outputs":
        return _structured_outputs(value, field)
    if name == "guided_whitespace_pattern":
        raise InvalidFieldError(field, "asks for white space of another form", _OWN_SPACING)
    if name == "structural_tag":
        _refuse_structural_tag(field)
    return _one(field, _TOP[name], value)


def _one(field: str, kind_: Kind, value: object, whitespace: Whitespace = "compact") -> tuple[_Asked, ...]:
    """The constraint of one field; nothing, if the value asks for nothing."""
    if value is None or (kind_ == "json_object" and value is False) or (kind_ == "grammar" and value == ""):
        return ()
    if kind_ == "json_object" and value is not True:
        raise InvalidFieldError(field, f"is {kind(value)}", "give true or false")
    return (_Asked(field, kind_, value, whitespace),)


def _response_format(value: object, field: str) -> tuple[_Asked, ...]:
    if not isinstance(value, dict):
        raise InvalidFieldError(field, f"is {kind(value)}", _OPENAI_FORMATS)
    form = value.get("type")
    if form == "structural_tag":
        _refuse_structural_tag(f"{field}.type")
    if form not in ("text", "json_object", "json_schema"):
        reason = f"is {short(form)}" if isinstance(form, str) else "is none of OpenAI's"
        remedy = "give text, json_object or json_schema; structured_outputs takes regex, choice and grammar"
        raise InvalidFieldError(f"{field}.type", reason, remedy)
    # OpenAI's Responses and llama.cpp have the schema beside the type, OpenAI's Chat Completions in an object.
    inner = value.get("json_schema")
    known = {"type", "whitespace", "json_schema", "schema", "name", "strict", "description"}
    place = field
    if inner is not None:
        if not isinstance(inner, dict):
            raise InvalidFieldError(f"{field}.json_schema", f"is {kind(inner)}", _OPENAI_FORMATS)
        _refuse_others(value, {"type", "whitespace", "json_schema"}, field)
        place = f"{field}.json_schema"
        known = {"schema", "name", "strict", "description"}
    body = value if inner is None else inner
    _refuse_others(body, known, place)
    if body.get("strict") not in (None, True, False):
        raise InvalidFieldError(f"{place}.strict", f"is {kind(body['strict'])}", "give true or false")
    whitespace = _whitespace(value, field)
    if form == "text":
        _refuse_others(value, {"type"}, field)
        return ()
    if body.get("schema") is not None:
        return _one(f"{place}.schema", "json_schema", body["schema"], whitespace)
    if form == "json_schema":
        raise InvalidFieldError(f"{place}.schema", "is missing", _OPENAI_FORMATS)
    return _one(field, "json_object", value=True, whitespace=whitespace)


def _structured_outputs(value: object, field: str) -> tuple[_Asked, ...]:
    if not isinstance(value, dict):
        raise InvalidFieldError(field, f"is {kind(value)}", 'give an object such as {"choice": ["yes", "no"]}')
    if value.get("structural_tag") is not None:
        _refuse_structural_tag(f"{field}.structural_tag")
    if value.get("whitespace_pattern") is not None:
        raise InvalidFieldError(f"{field}.whitespace_pattern", "asks for white space of another form", _OWN_SPACING)
    options = {"structural_tag", "whitespace_pattern", "whitespace", "disable_any_whitespace", *_NO_EFFECT}
    _refuse_others(value, {*_STRUCTURED, *options}, field)
    for name, allowed in _NO_EFFECT.items():
        if value.get(name) is not None and not any(value[name] is other for other in allowed):
            remedy = "say it in the schema: additionalProperties false" if len(allowed) == 1 else "give true or false"
            raise InvalidFieldError(f"{field}.{name}", "asks for something Helix does not do", remedy)
    whitespace = _whitespace(value, field)
    asked: list[_Asked] = []
    for name, kind_ in _STRUCTURED.items():
        asked += _one(f"{field}.{name}", kind_, value.get(name), whitespace)
    if not asked:
        raise InvalidFieldError(field, "asks for nothing", f"give one of {', '.join(_STRUCTURED)}")
    return tuple(asked)


def _whitespace(values: Mapping[str, Any], field: str) -> Whitespace:
    """The spacing under Helix' own name, ``whitespace``, or under vLLM's, ``disable_any_whitespace``."""
    own, theirs = values.get("whitespace"), values.get("disable_any_whitespace")
    if own is not None and (not isinstance(own, str) or own not in WHITESPACES):
        raise InvalidFieldError(f"{field}.whitespace", "is unknown", f"give one of {', '.join(WHITESPACES)}")
    if theirs not in (None, True, False) or (isinstance(theirs, int | float) and not isinstance(theirs, bool)):
        raise InvalidFieldError(f"{field}.disable_any_whitespace", f"is {kind(theirs)}", "give true or false")
    if own is not None and theirs is not None and (own == "compact") is not theirs:
        raise InvalidFieldError(f"{field}.disable_any_whitespace", "differs from whitespace", "give one of the two")
    return "model" if own == "model" or theirs is False else "compact"


def _refuse_structural_tag(field: str) -> NoReturn:
    remedy = "use response_format for the whole answer, or tools for calls in it"
    raise InvalidFieldError(field, "asks for a structural tag, which Helix does not know", remedy)


def _refuse_others(values: Mapping[str, Any], known: set[str], field: str) -> None:
    for name, value in values.items():
        if name not in known and value is not None:
            raise InvalidFieldError(f"{field}.{short(name)}", "is not a known field", "remove it")


def _text(asked: _Asked) -> str:
    """The text of a value, for a schema and for choices also of the parsed JSON."""
    field, kind_, value = asked.field, asked.kind, asked.value
    if kind_ == "json_object":
        return ""
    if isinstance(value, str):
        return value
    if (kind_ == "json_schema" and isinstance(value, dict | bool)) or (kind_ == "choice" and isinstance(value, list)):
        try:
            return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        except RecursionError as error:
            raise InvalidFieldError(field, "is nested too deeply", "flatten it") from error
    wanted = {"json_schema": "a schema as an object or as JSON text", "choice": "a list of strings"}
    raise InvalidFieldError(field, f"is {kind(value)}", f"give {wanted.get(kind_, 'a string')}")


@lru_cache(maxsize=_KEPT_OUTCOMES)
def _outcome(kind_: Kind, text: str) -> _Outcome:
    """Check one text; its faults are kept as well, so that a million lines with one bad schema end as soon."""
    # Late: lines without a constraint do without the grammar library, which takes a tenth of a second to import.
    from helix_jobs.intake import constraint_check

    checks: Mapping[Kind, Callable[[str], str]] = {
        "json_schema": constraint_check.check_schema_text,
        "json_object": lambda _text: "",
        "regex": constraint_check.check_regex_text,
        "choice": constraint_check.check_choices,
        "grammar": constraint_check.check_grammar,
    }
    try:
        return _Outcome(checks[kind_](text))
    except InvalidFieldsError as error:
        return _Outcome("", error.faults)
    except InvalidFieldError as error:
        return _Outcome("", (error,))
