"""TruncatePrompt: which tokens of a prompt that is too long are kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, cast, get_args

from helix_jobs.engine.field_checks import check_integer, kind
from helix_jobs.errors import InvalidFieldError

if TYPE_CHECKING:
    from collections.abc import Sequence

Keep = Literal["end", "start_and_end"]
# The longest prompt that is tokenised to be truncated, in tokens; also the most that may be kept of one.
MAX_TRUNCATED_TOKENS: Final = 1_048_576
# vLLM's number for as many tokens as fit.
AS_MANY_AS_FIT: Final = -1
_FIELD: Final = "truncate_prompt"
_REMEDY: Final = 'give an object such as {"keep": "start_and_end", "tokens": 2000}; tokens may be left out'


@dataclass(frozen=True, slots=True, kw_only=True)
class TruncatePrompt:
    """Truncate a prompt that is too long instead of failing its job.

    Tokens are counted after the chat template was applied. A prompt that begins with the model's BOS token keeps it, as
    one of the tokens kept (tokenizers' own truncation does so too); the rest of a template's beginning may go.

    Attributes:
        keep: ``end`` keeps the last tokens. ``start_and_end`` keeps as many of the first as of the last, of an odd
            number one more of the last.
        tokens: How many to keep at most, 1 to 1,048,576; None for as many as the context holds beside ``max_tokens``.

    Raises:
        InvalidFieldError: A field has the wrong type or is out of range.
    """

    keep: Keep = "end"
    tokens: int | None = None

    def __post_init__(self) -> None:
        if self.keep not in get_args(Keep):
            shown = f"is {kind(self.keep)}" if not isinstance(self.keep, str) else "is another text"
            raise InvalidFieldError(f"{_FIELD}.keep", shown, f"give {' or '.join(get_args(Keep))}")
        if self.tokens is not None:
            check_integer(f"{_FIELD}.tokens", self.tokens, 1, MAX_TRUNCATED_TOKENS)

    @classmethod
    def from_mapping(cls, values: object) -> TruncatePrompt:
        """Build from parsed JSON; missing fields and nulls take the defaults.

        Raises:
            InvalidFieldError: It is no object, has an unknown field, or a field is wrong.
        """
        if not isinstance(values, dict):
            raise InvalidFieldError(_FIELD, f"is {kind(values)}", _REMEDY)
        if not values.keys() <= {"keep", "tokens"}:
            raise InvalidFieldError(_FIELD, "holds a field that is neither keep nor tokens", _REMEDY)
        return cls(**{name: value for name, value in values.items() if value is not None})

    @classmethod
    def from_number(cls, tokens: object) -> TruncatePrompt:
        """Build from vLLM's ``truncate_prompt_tokens``: keep the last so many tokens, with -1 as many as fit.

        Raises:
            InvalidFieldError: It is neither -1 nor a number of tokens.
        """
        if tokens == AS_MANY_AS_FIT and not isinstance(tokens, bool):
            return cls()
        try:
            check_integer("truncate_prompt_tokens", tokens, 1, MAX_TRUNCATED_TOKENS)
        except InvalidFieldError as error:
            raise InvalidFieldError(error.field, error.reason, f"{error.remedy}, or -1 for as many as fit") from error
        return cls(tokens=cast("int", tokens))

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready mapping; ``from_mapping`` reads it back."""
        return {"keep": self.keep} if self.tokens is None else {"keep": self.keep, "tokens": self.tokens}

    def kept(self, token_ids: Sequence[int], most: int, bos_token_id: int | None) -> tuple[int, ...]:
        """The tokens of a prompt that are kept.

        Args:
            token_ids: The prompt.
            most: Tokens to keep at most, at least 1.
            bos_token_id: The model's BOS token; None if it has none.
        """
        if len(token_ids) <= most:
            return tuple(token_ids)
        first = most // 2 if self.keep == "start_and_end" else 0
        if first == 0 and most > 1 and token_ids[0] == bos_token_id:
            first = 1
        return (*token_ids[:first], *token_ids[len(token_ids) - most + first :])
