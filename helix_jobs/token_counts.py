"""TokenCounts: the tokens of a request, a run, a batch or an engine."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCounts:
    """Tokens by kind. A record with these counts among its fields extends it.

    It has no ``+`` or ``-``: a record would inherit them, though its other fields are no amounts.

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

    @property
    def acceptance_rate(self) -> float | None:
        """Accepted / drafted; None when nothing was drafted."""
        return self.accepted_tokens / self.draft_tokens if self.draft_tokens else None

    def tokens(self) -> dict[str, int]:
        """The five counts by name, for another class that has them."""
        return {field.name: getattr(self, field.name) for field in fields(TokenCounts)}


def total_tokens(counts: Collection[TokenCounts]) -> TokenCounts:
    """The sum of each of the five counts."""
    return TokenCounts(**{name: sum(getattr(one, name) for one in counts) for name in TokenCounts().tokens()})
