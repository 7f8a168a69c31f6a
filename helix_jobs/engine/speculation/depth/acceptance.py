"""RunningAcceptance: how often the target has recently accepted a draft token. No torch."""

from __future__ import annotations


class RunningAcceptance:
    """Exponentially discounted rate at which one draft token is accepted, given that those before it were.

    Tokens behind the first rejection were never judged, so they are no trials. Each accepted token is a success, and
    the rejected one, if any, a failure. Counting ``accepted / drafted`` instead would make deep drafts look worse than
    they are and shallow ones better.

    Trade-off: one rate for all positions is useful after few trials, but misses that agreement comes in stretches (a
    draft that has been right five times is likelier to be right again); a rate for each position would show that.

    Args:
        horizon: Trials after which an old one has lost 63 % of its weight.
        prior_rate: Rate before there are trials.
        prior_trials: Weight of ``prior_rate``, in trials; it never fades.
    """

    def __init__(self, horizon: float, prior_rate: float, prior_trials: float) -> None:
        self._discount = 1.0 - 1.0 / horizon
        self._prior_rate = prior_rate
        self._prior_trials = prior_trials
        self._successes = 0.0
        self.trials = 0.0

    @property
    def rate(self) -> float:
        """The posterior mean."""
        return self.rate_towards(self._prior_rate)

    def rate_towards(self, prior_rate: float, weight: float = 1.0) -> float:
        """The posterior mean with another prior, and with its own trials counted ``weight`` times."""
        successes = weight * self._successes + self._prior_trials * prior_rate
        return successes / (weight * self.trials + self._prior_trials)

    def observe(self, drafted: int, accepted: int) -> None:
        """Count one verification of ``drafted`` tokens, of which the first ``accepted`` were accepted."""
        for position in range(min(drafted, accepted + 1)):
            self._successes = self._successes * self._discount + (position < accepted)
            self.trials = self.trials * self._discount + 1.0

    def fade(self, trials: float) -> None:
        """Keep the rate but weigh it as at most ``trials`` trials, so that new ones soon count."""
        if self.trials > trials:
            # With fewer trials the prior would pull the rate away: make the learned rate the prior.
            self._prior_rate = self.rate
            self.trials = trials
            self._successes = self._prior_rate * trials
