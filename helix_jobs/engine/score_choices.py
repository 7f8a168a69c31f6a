"""ScoreChoices: the options of a request that wants their probabilities instead of an answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from helix_jobs.errors import InvalidFieldError

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_OPTIONS: Final = 256
MAX_OPTION_CHARS: Final = 4096
_KEYS: Final = ("score_choices", "score_by")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreChoices:
    """Options to score as continuations of a prompt.

    Attributes:
        options: 1 to 256 different texts of 1 to 4,096 characters.
        by: What the best option is best by: ``sum``, the log probability of the whole option (the default), or
            ``mean``, the same a token, which does not favour short options.

    Raises:
        InvalidFieldError: There are no such options; names the field of the line.
    """

    options: tuple[str, ...]
    by: Literal["sum", "mean"] = "sum"

    def __post_init__(self) -> None:
        remedy = f"give 1 to {MAX_OPTIONS} different strings of 1 to {MAX_OPTION_CHARS} characters"
        if not 1 <= len(self.options) <= MAX_OPTIONS:
            raise InvalidFieldError("choices", f"has {len(self.options)} options", remedy)
        for index, option in enumerate(self.options):
            if not isinstance(option, str):
                raise InvalidFieldError(f"choices[{index}]", "is no string", remedy)
            if not 1 <= len(option) <= MAX_OPTION_CHARS:
                raise InvalidFieldError(f"choices[{index}]", f"has {len(option)} characters", remedy)
        if len(set(self.options)) < len(self.options):
            raise InvalidFieldError("choices", "has an option twice", remedy)
        if self.by not in ("sum", "mean"):
            raise InvalidFieldError("score_by", "is neither sum nor mean", "give one of the two")

    def to_dict(self) -> dict[str, Any]:
        """Its keys of a stored request."""
        return {"score_choices": list(self.options), **({} if self.by == "sum" else {"score_by": self.by})}

    @classmethod
    def from_stored(cls, stored: Mapping[str, Any]) -> ScoreChoices | None:
        """Read a stored request; None: it scores no options.

        Raises:
            InvalidFieldError: The keys hold something else.
        """
        options, by = (stored.get(key) for key in _KEYS)
        if options is None:
            return None
        if not isinstance(options, list):
            raise InvalidFieldError("choices", "is no list", "submit the line again")
        return cls(options=tuple(options), by="sum" if by is None else by)
