"""Piece: what one event of a server's stream adds to an answer, and the checks of what the event holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from helix_jobs.errors import HelixError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from helix_jobs.engine.request import FinishReason


class UnreadableAnswerError(HelixError):
    """An answer is none that the server's interface makes. The message quotes nothing of it."""


@dataclass(frozen=True, slots=True)
class TokenScore:
    """A token's log probability before temperature and penalties, and those of the most likely tokens, best first."""

    token_id: int
    logprob: float
    alternatives: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What one event adds.

    Attributes:
        token_ids: New tokens; empty from a server that answers in text.
        text: New text; empty from a server that answers in tokens.
        scores: Log probabilities, one for each new token, where they were asked for.
        finish: Why the answer ends here; None if it goes on.
        num_tokens: How many tokens the server says it has made for the answer; None if it does not say.
        cached_prompt_tokens: Prompt tokens that the server did not compute anew; None if it does not say.
    """

    token_ids: tuple[int, ...] = ()
    text: str = ""
    scores: tuple[TokenScore, ...] = ()
    finish: FinishReason | None = None
    num_tokens: int | None = None
    cached_prompt_tokens: int | None = None

    @property
    def is_progress(self) -> bool:
        """Whether the answer has grown or ended."""
        return bool(self.token_ids or self.text or self.finish)


def token_ids_of(value: object) -> tuple[int, ...]:
    """A list of token ids.

    Raises:
        UnreadableAnswerError: It is none.
    """
    if not isinstance(value, list) or not all(type(one) is int and 0 <= one < 2**31 for one in value):
        raise UnreadableAnswerError("a list of token ids is none")
    return tuple(value)


def text_of(value: object) -> str:
    """A text.

    Raises:
        UnreadableAnswerError: It is none.
    """
    if not isinstance(value, str):
        raise UnreadableAnswerError("a text is none")
    return value


def number_of(value: object) -> float:
    """A finite number.

    Raises:
        UnreadableAnswerError: It is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < float("inf"):
        raise UnreadableAnswerError("a log probability is no number")
    return float(value)


def object_of(value: object) -> Mapping[str, Any]:
    """A JSON object.

    Raises:
        UnreadableAnswerError: It is none.
    """
    if not isinstance(value, dict):
        raise UnreadableAnswerError("an object is none")
    return value


def count_of(value: object) -> int | None:
    """A number of tokens; None for anything else, as servers may leave it out."""
    return value if type(value) is int and value >= 0 else None


def only_choice(event: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The one choice of an event in OpenAI's form; None for an event that only counts tokens.

    Raises:
        UnreadableAnswerError: It is not in that form.
    """
    choices = event.get("choices")
    if choices == []:
        return None
    if not isinstance(choices, list) or len(choices) != 1:
        raise UnreadableAnswerError("an event has no choice")
    return object_of(choices[0])
