"""MatchCalibrator: how often a token copied behind a match is right, by match length, learned while running.

No torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from helix_jobs.engine.speculation.drafters.ngram_index import MAX_MATCH

if TYPE_CHECKING:
    from collections.abc import Sequence

# The match length at which each bucket begins.
_BUCKETS: Final = (0, 3, 4, 5, 7, 9, 13)
_BUCKET_OF_LENGTH: Final = tuple(max(b for b, low in enumerate(_BUCKETS) if low <= n) for n in range(MAX_MATCH + 1))
# Trade-off: a larger step follows a change of workload sooner and is noisier.
_STEP: Final = 1 / 64
# Rates stay away from 0 and 1, which would claim certainty.
_LOWEST, _HIGHEST = 0.01, 0.99


class MatchCalibrator:
    """Turns a match and the votes of its occurrences into a probability of acceptance.

    The *rate* of a match length is the probability of acceptance of a token behind a lone match of that length. Every
    further occurrence is a trial that agrees or does not. The probability is the posterior mean of a Beta distribution
    with the rate as a prior worth one trial (the weight that predicted best, of 0.5 to 100).

    Args:
        rates: Initial rate of each bucket of match lengths.
    """

    def __init__(self, rates: Sequence[float]) -> None:
        assert len(rates) == len(_BUCKETS), "a rate for every bucket"
        self._rates = list(rates)

    def confidence(self, match_length: int, num_agreeing: int, num_occurrences: int) -> float:
        """Probability of acceptance of a token with ``num_agreeing`` of ``num_occurrences`` votes."""
        rate = self._rates[_BUCKET_OF_LENGTH[min(match_length, MAX_MATCH)]]
        return (rate + num_agreeing - 1) / num_occurrences

    def confidences(self, match_length: int, votes: Sequence[tuple[int, int]]) -> tuple[float, ...]:
        """``confidence`` for each token of a proposal; each accepted token lengthens the match for the next."""
        return tuple(self.confidence(length, *vote) for length, vote in enumerate(votes, start=match_length))

    def observe(self, match_length: int, predicted: Sequence[float], num_accepted: int) -> None:
        """Learn from one verified proposal.

        Tokens behind the first rejection were never tried and teach nothing. The rate moves by a fraction of the
        prediction error. For a lone occurrence it is therefore an exponentially weighted mean of the outcomes; for
        several, the votes account for part of the prediction.

        Args:
            match_length: Tokens of context that matched.
            predicted: The confidence of each proposed token that was verified.
            num_accepted: How many of them were accepted.
        """
        for position, confidence in enumerate(predicted[: num_accepted + 1]):
            bucket = _BUCKET_OF_LENGTH[min(match_length + position, MAX_MATCH)]
            outcome = 1.0 if position < num_accepted else 0.0
            rate = self._rates[bucket] + _STEP * (outcome - confidence)
            self._rates[bucket] = min(_HIGHEST, max(_LOWEST, rate))
