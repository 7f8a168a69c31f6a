"""Read a line's ``accept`` field: when its answer counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from helix_jobs.acceptance.patterns import check_compiles
from helix_jobs.acceptance.rule import AcceptanceRule
from helix_jobs.acceptance.stored import own_schema
from helix_jobs.engine.sampling_params import SamplingParams
from helix_jobs.errors import InvalidFieldError

if TYPE_CHECKING:
    from collections.abc import Mapping

_DEFAULT_MAX_TOKENS: Final = SamplingParams().max_tokens


class AcceptanceReader:
    """Reads the rules of lines that share the same default.

    Args:
        default: The rule of the whole batch; a line's own fields take precedence over its fields.

    Raises:
        InvalidFieldError: The default's schema or regular expression cannot be used.
    """

    def __init__(self, default: AcceptanceRule | None = None) -> None:
        self._default = default
        if default is not None and default.schema is not True:
            check_compiles(default, None)

    def concerns(self, values: Mapping[str, Any]) -> bool:
        """Whether there may be a rule for a line."""
        return self._default is not None or "accept" in values

    def read(self, values: Mapping[str, Any]) -> AcceptanceRule | None:
        """The rule of a line; None without one, or where the line says false.

        Raises:
            InvalidFieldError: The field is wrong.
            InvalidFieldsError: Several of its fields are.
        """
        value = values.get("accept")
        if value is None:
            return self._default
        return None if value is False else AcceptanceRule.from_mapping(value, self._default)

    def check(self, rule: AcceptanceRule, request: Mapping[str, Any]) -> None:
        """Refuse a rule that no answer to this request could meet, or whose patterns cannot be used.

        Raises:
            InvalidFieldError: Names the field and the reason.
        """
        if rule is not self._default or rule.schema is True:
            check_compiles(rule, own_schema(request))
        most = request["sampling"].get("max_tokens", _DEFAULT_MAX_TOKENS)
        if rule.min_tokens is not None and rule.min_tokens > most:
            reason = f"{rule.min_tokens:,} is more than the request's max_tokens, {most:,}"
            raise InvalidFieldError("accept.min_tokens", reason, "lower it, or raise the request's max_tokens")
