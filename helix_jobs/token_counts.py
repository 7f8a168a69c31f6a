"""TokenCounts: the tokens of a request, a run, a batch or an engine; all counts are added or subtracted together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Self


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCounts:
    """Tokens by kind. A class with more counters extends it, and its differences include them all.

    Attributes:
        prompt_tokens: Tokens of prompts.
        cached_prompt_tokens: The part of ``prompt_tokens`` whose keys and values were shared instead of computed.
        completion_tokens: Emitted tokens.
        draft_tokens: Proposed tokens.
        accepted_tokens: The part of ``draft_tokens`` that verification accepted.
    """

    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    completion_tokens: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0

    def __add__(self, other: Self) -> Self:
        return replace(self, **{f.name: _plus(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)})

    def __sub__(self, earlier: Self) -> Self:
        """The counts since ``earlier``."""
        return replace(self, **{f.name: _minus(getattr(self, f.name), getattr(earlier, f.name)) for f in fields(self)})

    @property
    def acceptance_rate(self) -> float | None:
        """Accepted / drafted; None when nothing was drafted."""
        return self.accepted_tokens / self.draft_tokens if self.draft_tokens else None

    def tokens(self) -> dict[str, int]:
        """The five counts by name, for another class that has them."""
        return {field.name: getattr(self, field.name) for field in fields(TokenCounts)}


def _plus(one: Any, other: Any) -> Any:  # noqa: ANN401  (a number, or numbers by name)
    if isinstance(one, Mapping):
        return {name: one.get(name, 0) + other.get(name, 0) for name in {**one, **other}}
    return one + other


def _minus(later: Any, earlier: Any) -> Any:  # noqa: ANN401  (a number, or numbers by name)
    if isinstance(later, Mapping):
        return {name: more for name, total in later.items() if (more := total - earlier.get(name, 0))}
    return later - earlier
