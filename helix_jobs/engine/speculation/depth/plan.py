"""How deep each sequence of a step should draft, and from which source: pure functions. No torch.

The figure to maximise is *goodput* (Liu et al., "Optimizing Speculative Decoding for Serving Large Language Models
Using Goodput", arXiv 2406.14066): expected emitted tokens over expected seconds. A sequence whose draft tokens are
accepted with probability ``a`` each emits ``1 + a + a^2 + ... + a^K`` tokens from K of them (Leviathan et al., "Fast
Inference from Transformers via Speculative Decoding", ICML 2023). In a batch, draft tokens share the step: up to some
token count they cost nothing extra, past it each costs its full price.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, islice
from operator import mul
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from helix_jobs.engine.speculation.depth.costs import StepCosts

_RATE_STEPS: Final = 128
# Seconds that a catch-up must promise to save for each second it takes. Trade-off: above 1, small gains are forgone; at
# 1, a catch-up is a loss whenever the sequence ends early or a change of the batch stops its drafting.
_CATCH_UP_PREMIUM: Final = 1.5
# Depths and numbers of sequences to try; goodput changes little between them.
_DEPTHS: Final = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16)
_COUNTS: Final = frozenset((1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256))


@dataclass(frozen=True, slots=True)
class DraftCandidate:
    """One decoding sequence of the step, as far as its depth depends on it.

    Attributes:
        ceiling: Most draft tokens it may verify; 0 when it may not draft.
        confidence: Probability that each token of its found draft is accepted, given that those before it are; ()
            where no draft was found.
        num_forced: The first tokens of its found draft, which a grammar forces. A computed draft goes on behind them;
            the rest of the found draft it replaces.
        can_compute: Whether the draft model can draft for it at all.
        acceptance: Its own running acceptance of computed drafts; None without data: that of all sequences applies.
        catch_up_tokens: Tokens before its last that the draft model must compute before it can draft.
        remaining_tokens: Most tokens it may still emit.
    """

    ceiling: int
    confidence: tuple[float, ...] = ()
    acceptance: float | None = None
    catch_up_tokens: int = 0
    remaining_tokens: int = 1
    num_forced: int = 0
    can_compute: bool = True

    @property
    def computed_ceiling(self) -> int:
        """Most draft tokens to compute for it."""
        return max(0, self.ceiling - self.num_forced) if self.can_compute else 0


@dataclass(frozen=True, slots=True)
class DepthPlan:
    """Depths, one per candidate, and their expected tokens and seconds.

    Attributes:
        computed_depths: Draft tokens to compute.
        found_depths: Draft tokens to take from found drafts: where others are computed, those that a grammar forces.
        tokens: Expected emitted tokens of the step.
        seconds: Expected seconds they take, see ``StepTimes``.
    """

    computed_depths: tuple[int, ...]
    found_depths: tuple[int, ...]
    tokens: float
    seconds: float

    @property
    def goodput(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds


class StepTimes:
    """Seconds of one step as a function of what it drafts.

    Prompt chunks in the step have to be computed anyway. They shift where on the cost curve draft tokens land, but
    their own time is left out. With it in the denominator every draft would look cheap, although each second a draft
    takes delays everything that follows.
    """

    def __init__(self, costs: StepCosts, num_sequences: int, prefill_tokens: int) -> None:
        self._costs = costs
        self._packed = num_sequences + prefill_tokens
        self._sequences = num_sequences
        self.plain = costs.target_seconds(num_sequences, num_sequences)
        self._offset = self.plain - costs.target_seconds(self._packed, num_sequences)

    def verify(self, draft_tokens: int) -> float:
        """The target's seconds for the decoding sequences and ``draft_tokens`` draft tokens."""
        return self._offset + self._costs.target_seconds(self._packed + draft_tokens, self._sequences)

    def draft(self, sequences: int) -> float:
        """Seconds of one drafting pass over one token of each of ``sequences`` sequences."""
        return self._costs.draft_seconds(sequences)

    def catch_up(self, tokens: int) -> float:
        """Seconds that catching up on ``tokens`` tokens adds to the first drafting pass."""
        return self._costs.draft_seconds(1 + tokens) - self._costs.draft_seconds(1) if tokens > 0 else 0.0


@lru_cache
def _depths(max_depth: int) -> tuple[int, ...]:
    """Depths to try, ``max_depth`` itself always among them."""
    return (*(depth for depth in _DEPTHS if depth < max_depth), max_depth)


@lru_cache(maxsize=_RATE_STEPS + 1)
def _geometric(step: int) -> tuple[float, ...]:
    """Expected accepted tokens of 0, 1, 2... drafted ones at acceptance ``step / _RATE_STEPS``."""
    rate = step / _RATE_STEPS
    return (0.0, *accumulate(rate**position for position in range(1, _DEPTHS[-1] + 1)))


def accepted_tokens(acceptance: float) -> tuple[float, ...]:
    """Expected accepted tokens of 0..16 drafted ones, at an acceptance rounded to 1/128."""
    return _geometric(round(min(1.0, max(0.0, acceptance)) * _RATE_STEPS))


def plan_none(candidates: Sequence[DraftCandidate], times: StepTimes) -> DepthPlan:
    """Plain decoding, but for what grammars force.

    Forced tokens are drafted whatever the costs: they have to be computed anyway, and here in fewer steps.
    """
    forced = tuple(candidate.num_forced for candidate in candidates)
    count = sum(forced)
    return DepthPlan((0,) * len(candidates), forced, float(len(candidates) + count), times.verify(count))


def plan_found(candidates: Sequence[DraftCandidate], times: StepTimes) -> DepthPlan:
    """Found drafts alone: what is forced, and the tokens likeliest to be accepted, as many as goodput gains from."""
    # (chance that the token is accepted, candidate), best first. A candidate's own chances never rise, so any prefix of
    # this list holds the first tokens of each draft; among equal chances only their number matters.
    chances: list[tuple[float, int]] = []
    for index, candidate in enumerate(candidates):
        reach = accumulate(candidate.confidence[: candidate.ceiling], mul)
        guesses = islice(reach, candidate.num_forced, None)
        chances.extend((chance, index) for chance in guesses if chance > 0.0)
    plain = plan_none(candidates, times)
    if not chances:
        return plain
    chances.sort(key=lambda pair: -pair[0])
    totals = list(accumulate((chance for chance, _ in chances), initial=plain.tokens))
    # Try every small count, then counts in strides of 1/16.
    counts, count = [0], 1
    while count < len(chances):
        counts.append(count)
        count += 1 + count // 16
    counts.append(len(chances))
    num_forced = sum(plain.found_depths)
    best = max(counts, key=lambda count: (totals[count] / times.verify(num_forced + count), -count))
    depths = list(plain.found_depths)
    for _, index in chances[:best]:
        depths[index] += 1
    return DepthPlan(plain.computed_depths, tuple(depths), totals[best], times.verify(num_forced + best))


def can_pay(num_sequences: int, max_depth: int, times: StepTimes, required: float) -> bool:
    """Whether computed drafts could raise goodput ``required``-fold if every draft token were accepted."""
    plain = num_sequences / times.plain
    counts = [count for count in _COUNTS if count < num_sequences]
    return any(
        (num_sequences + count * depth) / (times.verify(count * depth) + depth * times.draft(count)) >= required * plain
        for count in (*counts, num_sequences)
        for depth in _depths(max_depth)
    )


class ComputedPlanner:
    """Plans the depths of computed drafts on top of a plan of found ones.

    Sequences differ in acceptance, catch-up and found drafts, and share the passes. Trade-off: one depth for the best n
    sequences is searched over a grid of depths and n, then trimmed sequence by sequence. That can miss the best ragged
    plan by a little, but is cheap enough to run between two steps.

    Args:
        candidates: The step's candidates.
        times: The step's times.
        acceptance: One rate per candidate.
        lifetimes: Tokens each candidate is still expected to emit: its catch-up must pay off within these.
        base: The plan of found drafts. A draft is computed instead where that promises more.
    """

    def __init__(
        self,
        candidates: Sequence[DraftCandidate],
        times: StepTimes,
        acceptance: Sequence[float],
        lifetimes: Sequence[float],
        base: DepthPlan,
    ) -> None:
        self._candidates = candidates
        self._times = times
        self._accepted = [accepted_tokens(rate) for rate in acceptance]
        self._lifetimes = lifetimes
        self._base = base
        self._catch_up = [times.catch_up(candidate.catch_up_tokens) for candidate in candidates]
        # What the base gains from a candidate beyond what is forced, which a computed draft keeps.
        self._found_gain = [
            (sum(accumulate(candidate.confidence[:depth], mul)) if depth else 0.0) - candidate.num_forced
            for candidate, depth in zip(candidates, base.found_depths, strict=True)
        ]

    def plan(self, max_depth: int) -> DepthPlan:
        """The best plan found; its computed depths are all 0 if nothing beats the base."""
        best, best_goodput = None, self._base.goodput
        for depth in _depths(max_depth):
            chosen, goodput = self._best_count(depth)
            if goodput > best_goodput:
                best, best_goodput = (depth, chosen), goodput
        if best is None:
            return self._base
        depth, chosen = best
        depths = {index: min(depth, self._candidates[index].computed_ceiling) for index in chosen}
        plan = self.evaluate(depths)
        trimmed = self.evaluate(self._trim(depths, plan))
        plan = max(plan, trimmed, key=lambda plan: plan.goodput)
        return plan if plan.goodput > self._base.goodput else self._base

    def evaluate(self, depths: dict[int, int]) -> DepthPlan:
        """The plan with computed drafts of ``depths`` (candidate -> depth above 0); others draft as in the base."""
        computed = [0] * len(self._candidates)
        found = list(self._base.found_depths)
        tokens, seconds = self._base.tokens, 0.0
        for index, depth in depths.items():
            computed[index], found[index] = depth, self._candidates[index].num_forced
            tokens += self._accepted[index][depth] - self._found_gain[index]
            seconds += self._charge(index, depth)
        for position in range(max(depths.values(), default=0)):
            seconds += self._times.draft(sum(depth > position for depth in depths.values()))
        seconds += self._times.catch_up(sum(self._candidates[index].num_forced for index in depths))
        seconds += self._times.verify(sum(computed) + sum(found))
        return DepthPlan(tuple(computed), tuple(found), tokens, seconds)

    def _best_count(self, depth: int) -> tuple[list[int], float]:
        """The best set of candidates for one common ``depth``, and the goodput it promises."""
        base = self._base
        # (gain in tokens net of the catch-up's cost, candidate, gain, charge, extra tokens to verify)
        offers: list[tuple[float, int, float, float, int]] = []
        for index, candidate in enumerate(self._candidates):
            own = min(depth, candidate.computed_ceiling)
            gain = self._accepted[index][own] - self._found_gain[index]
            charge = self._charge(index, own)
            net = gain - charge * base.goodput
            if own and net > 0.0:
                extra = candidate.num_forced + own - base.found_depths[index]
                offers.append((net, index, gain, charge, extra))
        offers.sort(key=lambda offer: (-offer[0], offer[1]))
        best_count, best_goodput = 0, 0.0
        tokens, charges, to_verify, num_forced = base.tokens, 0.0, sum(base.found_depths), 0
        for count, (_, index, gain, charge, extra) in enumerate(offers, start=1):
            tokens += gain
            charges += charge
            to_verify += extra
            num_forced += self._candidates[index].num_forced
            if count in _COUNTS or count == len(offers):
                # Count every pass as wide as the first: ceilings differ only near a sequence's end.
                drafting = depth * self._times.draft(count) + self._times.catch_up(num_forced)
                seconds = self._times.verify(to_verify) + drafting + charges
                if tokens / seconds > best_goodput:
                    best_count, best_goodput = count, tokens / seconds
        return [offer[1] for offer in offers[:best_count]], best_goodput

    def _trim(self, depths: dict[int, int], plan: DepthPlan) -> dict[int, int]:
        """Cut each sequence's depth where its next token is worth less than the time it adds to the step."""
        count = len(depths)
        drafted = sum(plan.computed_depths) + sum(plan.found_depths)
        # Marginal seconds of one token, measured over the tokens that the cut could remove.
        verify = (self._times.verify(drafted) - self._times.verify(drafted - count)) / count
        half = count // 2
        draft = (self._times.draft(count) - self._times.draft(half)) / (count - half) if half else 0.0
        worth = plan.goodput * (verify + draft)
        trimmed = {}
        for index, depth in depths.items():
            accepted = self._accepted[index]
            own = depth
            while own and accepted[own] - accepted[own - 1] < worth:
                own -= 1
            if own and accepted[own] > self._found_gain[index]:
                trimmed[index] = own
        return trimmed

    def _charge(self, index: int, depth: int) -> float:
        """This step's part of a catch-up's cost, spread over the steps that the sequence is still expected to take."""
        seconds = self._catch_up[index]
        if seconds == 0.0:
            return 0.0
        return _CATCH_UP_PREMIUM * seconds / max(1.0, self._lifetimes[index] / (1.0 + self._accepted[index][depth]))
