"""The tokens of an answer with their probabilities, ready to be shown. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Final

from helix_jobs.plain_text import paragraphs

if TYPE_CHECKING:
    from helix_jobs.token_logprobs import TokenLogprobs, TokenText

SHOWN_TOKENS: Final = 1_000
LISTED_TOKENS: Final = 200
_ALTERNATIVES: Final = 5
# The least probability of a grade, from sure to surprising.
_GRADES: Final = (("sure", 0.9), ("likely", 0.5), ("open", 0.1), ("surprising", 0.0))
_TOKEN_CHARS: Final = 60


@dataclass(frozen=True, slots=True)
class ShownToken:
    """A token.

    Attributes:
        text: It as it stands in the text.
        name: It on one line: blanks and line ends are seen.
        grade: How probable it was: sure, likely, open or surprising; ``given`` where nothing stands before it.
        percent: Its probability, in words.
        logprob: The logarithm of its probability, in words.
        others: The likeliest tokens at its place, with their probabilities.
    """

    text: str
    name: str
    grade: str
    percent: str
    logprob: str
    others: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class ShownTokens:
    """The tokens of a text, or the first of them.

    Attributes:
        tokens: What is shown.
        count: How many there are.
    """

    tokens: tuple[ShownToken, ...]
    count: int

    @property
    def listed(self) -> tuple[ShownToken, ...]:
        """Those that stand in the table as well."""
        return self.tokens[:LISTED_TOKENS]


def shown_tokens(found: TokenLogprobs) -> ShownTokens:
    """The first tokens with their probabilities."""
    tokens = []
    for one in islice(found, SHOWN_TOKENS):
        text = found.texts[one.token_id]
        tokens.append(
            ShownToken(
                text=paragraphs(text.text),
                name=_name(text),
                grade=_grade(one.logprob),
                percent="" if one.logprob is None else _percent(one.logprob),
                logprob="" if one.logprob is None else f"{one.logprob:.3f}",
                others=tuple(
                    (_name(found.texts[token_id]), _percent(logprob))
                    for token_id, logprob in one.alternatives[:_ALTERNATIVES]
                ),
            )
        )
    return ShownTokens(tuple(tokens), len(found))


def _grade(logprob: float | None) -> str:
    if logprob is None:
        return "given"
    probability = math.exp(min(0.0, logprob))
    return next(name for name, least in _GRADES if probability >= least)


def _percent(logprob: float) -> str:
    probability = 100 * math.exp(min(0.0, logprob))
    return f"{probability:.1f} %" if probability >= 0.1 else "< 0.1 %"  # noqa: PLR2004  (what one digit can say)


def _name(text: TokenText) -> str:
    """A token on one line. Parts of a character are named by their bytes."""
    try:
        whole = text.data.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes " + text.data.hex(" ")
    seen = whole.replace("\n", "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}").replace("\t", "\N{RIGHTWARDS ARROW}")
    return paragraphs(seen.replace(" ", "\N{OPEN BOX}"))[:_TOKEN_CHARS]
