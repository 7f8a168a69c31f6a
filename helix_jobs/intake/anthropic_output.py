"""Translate what a Messages request says of its output: its form, and the effort to spend on it.

Source: the API reference of Anthropic's Messages, "Structured outputs" and "Effort".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from helix_jobs.errors import InvalidFieldError
from helix_jobs.intake.combinations import TWO_FORMS
from helix_jobs.intake.line_faults import Faults, kind, refuse_others

if TYPE_CHECKING:
    from collections.abc import Mapping

_FORMAT: Final = 'give {"type": "json_schema", "schema": {...}}'
_CONFIG: Final = "params.output_config"
# Where a form stood in the beta.
_EARLIER: Final = "params.output_format"


def anthropic_output(params: Mapping[str, Any], ours: dict[str, Any], names: dict[str, str]) -> None:
    """Set ``response_format`` and ``reasoning_effort``, and note their paths.

    Raises:
        InvalidFieldError: A field is malformed, or the form is given twice.
        InvalidFieldsError: Several faults.
    """
    config, earlier = params.get("output_config"), params.get("output_format")
    if config is not None and not isinstance(config, dict):
        raise InvalidFieldError(_CONFIG, f"is {kind(config)}", 'give {"format": {...}, "effort": "low"}')
    config = config or {}
    faults = Faults()
    faults.of(refuse_others, config, ("format", "effort"), _CONFIG)
    if config.get("effort") is not None:
        ours["reasoning_effort"], names["reasoning_effort"] = config["effort"], f"{_CONFIG}.effort"
    if earlier is not None and config.get("format") is not None:
        faults.add(TWO_FORMS.error(_EARLIER, f"{_CONFIG}.format"))
    form, path = (earlier, _EARLIER) if earlier is not None else (config.get("format"), f"{_CONFIG}.format")
    if form is not None:
        faults.of(_check_form, form, path)
        ours["response_format"], names["response_format"] = form, path
    faults.settle()


def _check_form(form: object, path: str) -> None:
    """Refuse any form but a JSON schema: those that Helix has beside it are not Anthropic's."""
    if not isinstance(form, dict):
        raise InvalidFieldError(path, f"is {kind(form)}", _FORMAT)
    if form.get("type") != "json_schema":
        raise InvalidFieldError(f"{path}.type", "is none of Anthropic's", _FORMAT)
    refuse_others(form, ("type", "schema"), path)
