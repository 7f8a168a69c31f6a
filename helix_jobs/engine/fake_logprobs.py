"""The log probabilities of the fake engine: a word's is minus a quarter for each of its letters, wherever it stands.

The numbers are made up. Their form is the real engine's, and a quarter is exact in every float.
"""

from __future__ import annotations

import math
from array import array
from typing import TYPE_CHECKING, Final

from helix_jobs.token_logprobs import NO_TOKEN, TokenLogprobs, TokenText

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_OF_A_LETTER: Final = -0.25


def fake_logprobs(words: Sequence[str], num_alternatives: int, *, begins_text: bool = True) -> TokenLogprobs:
    """Log probabilities of words whose token ids are their places. Each word is the only one that could stand there.

    Args:
        words: The words.
        num_alternatives: Alternatives of each: the word itself, and none beyond it.
        begins_text: Nothing stands before the first word, so it has no log probability.
    """
    token_ids, logprobs = array("i"), array("f")
    for place, word in enumerate(words):
        logprob = math.nan if begins_text and place == 0 else _OF_A_LETTER * len(word)
        alternatives = [] if math.isnan(logprob) else [(place, logprob)]
        missing = [(NO_TOKEN, 0.0 if alternatives else math.nan)] * num_alternatives
        row = [(place, logprob), *(alternatives + missing)[:num_alternatives]]
        token_ids.extend(token_id for token_id, _ in row)
        logprobs.extend(value for _, value in row)
    texts = {place: TokenText((f" {word}" if place else word).encode()) for place, word in enumerate(words)}
    return TokenLogprobs(num_alternatives, token_ids, logprobs, texts)


def fake_scores(options: Sequence[str]) -> Mapping[str, Mapping[str, float]]:
    """Option -> its scores, as ``GenerationResult.scores`` has them."""
    scores = {}
    for option in options:
        words = option.split() or [option]
        total = sum(_OF_A_LETTER * len(word) for word in words)
        scores[option] = {"sum": total, "mean": total / len(words), "tokens": len(words)}
    return scores
