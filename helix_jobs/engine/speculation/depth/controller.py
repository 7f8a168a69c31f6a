"""DepthController: chooses in each step how many tokens each sequence drafts, found or computed. No torch.

The choice may depend on a sequence's history, the rest of the batch and measured times, never on the token drafted at a
position (see ``Draft``).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate
from typing import TYPE_CHECKING, Final

from helix_jobs.engine.config import DEFAULT_SPECULATION_DEPTH
from helix_jobs.engine.speculation.depth.acceptance import RunningAcceptance
from helix_jobs.engine.speculation.depth.plan import (
    ComputedPlanner,
    DepthPlan,
    DraftCandidate,
    StepTimes,
    can_pay,
    plan_found,
    plan_none,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from helix_jobs.engine.speculation.depth.costs import StepCosts

__all__ = ["DepthController", "DepthDecision", "DepthReason", "DraftCandidate"]

DEFAULT_ACCEPTANCE: Final = 0.7
# For an int8 copy of the target: SmolLM2-135M's copy agreed on 0.92 of greedy tokens.
COPY_ACCEPTANCE: Final = 0.9

# Expected gain needed to switch the draft model on, and to keep it on. Found drafts cost so little that they need only
# the second. Trade-off: a wider margin forgoes small gains; with a narrower one, noise in the measured costs switches
# on a draft model that loses time.
_MARGIN_ON: Final = 0.03
_MARGIN_STAY: Final = 0.01
# Steps for which the draft model stays off unless the batch shrinks: costs change slowly, and planning for a large
# batch takes time.
_HOLD_STEPS: Final = 8

# Horizons of running acceptance, in trials: of all sequences together, and of one sequence.
_HORIZON: Final = 512
_SEQUENCE_HORIZON: Final = 48
_PRIOR_TRIALS: Final = 4
# Time constant, in steps without a draft: how fast a sequence's own acceptance fades to that of all sequences.
_RECORD_STEPS: Final = 100
# With fewer trials of all sequences the acceptance is a guess: drafts stay short and few sequences are caught up.
_MEASURED_TRIALS: Final = 16

# Tokens the draft model catches up on in one step; a single sequence may need more and is not cut. Trade-off: a higher
# limit lets a whole batch draft after fewer steps (a draft pass for a few of many sequences costs nearly as much), but
# each of these steps keeps all sequences waiting longer.
CATCH_UP_TOKENS: Final = 4096
_UNMEASURED_CATCH_UP_TOKENS: Final = 256
# Expected output length before any output has ended, its weight in outputs, and the outputs that the mean covers.
_OUTPUT_TOKENS: Final = 96.0
_OUTPUT_PRIOR: Final = 2
_OUTPUT_HORIZON: Final = 64

# Fraction of the time to spend on finding out whether poor acceptance or high costs have improved.
EXPLORATION_SHARE: Final = 0.005
_EXPLORED_SEQUENCES: Final = 4
_EXPLORED_DEPTH: Final = 3
# Exploration on credit begins once the time of _TRIAL_SAVINGS plain steps is saved up, if it seems to cost at most that
# of _TRIAL_LIMIT. It ends after _TRIAL_STEPS steps, or once the draft model has taken the time of _TRIAL_LOAN plain
# steps. The first step catches up and teaches little; the following ones are cheap.
_TRIAL_SAVINGS: Final = 4
_TRIAL_LIMIT: Final = 64
_TRIAL_STEPS: Final = 16
_TRIAL_LOAN: Final = 8
# Weight of past acceptance, in trials, once exploration begins.
_EXPLORED_TRIALS: Final = 24.0


class DepthReason(StrEnum):
    """Why a step drafts as it does."""

    NOTHING = "off:nothing"  # no sequence may draft, or no draft was found and none can be computed
    COST = "off:cost"  # computed drafts would not pay even if every token were accepted
    ACCEPTANCE = "off:acceptance"  # they would, but not at the present acceptance and catch-up
    PAYS = "pays"  # drafting pays; the depths say which drafts
    EXPLORE = "explore"  # computed drafts do not pay; a few sequences test whether that still holds


@dataclass(frozen=True, slots=True)
class DepthDecision:
    """Depths of one step, one per candidate.

    Attributes:
        computed_depths: Draft tokens to compute.
        found_depths: Draft tokens to take from found drafts: where others are computed, those that a grammar forces.
        reason: A ``DepthReason``.
    """

    computed_depths: tuple[int, ...]
    found_depths: tuple[int, ...]
    reason: str


@dataclass(slots=True)
class _Record:
    """A sequence's own acceptance of computed drafts, and the step in which it last drafted."""

    acceptance: RunningAcceptance
    step: int


@dataclass(frozen=True, slots=True)
class _Hold:
    """The draft model stays off until ``until``, in steps of at least this size and of the same kind."""

    reason: DepthReason
    until: int
    num_sequences: int
    has_prefill: bool

    def covers(self, step: int, num_sequences: int, prefill_tokens: int) -> bool:
        return step < self.until and num_sequences >= self.num_sequences and (prefill_tokens > 0) == self.has_prefill


@dataclass(frozen=True, slots=True)
class _Trial:
    """Exploration on credit: its last step, and the draft model's time at its beginning and at most at its end."""

    until: int
    spent_before: float
    spent_at_most: float

    def is_over(self, step: int, spent: float) -> bool:
        return step >= self.until or spent >= self.spent_at_most


class DepthController:
    """Maximises expected goodput step by step; depth 0 is always a candidate and wins ties.

    Deterministic: no clock and no random numbers, so the same observations lead to the same depths.

    The draft model runs only when the plan says so, and then first computes the tokens it has missed (*catch-up*). This
    cost is charged in equal parts to the steps the sequence is still expected to take, judged by the length of recent
    outputs and its own limit. While the model is off, because its acceptance is low or its cost high, *exploration*
    tries it again with a few sequences: it saves up ``EXPLORATION_SHARE`` of the time spent and acts once that covers
    the whole cost. Savings would hardly ever cover costs measured too high by accident: these are tried on credit, for
    a few steps, and the time they really took is saved up afterwards.

    Args:
        costs: Costs on this machine, refined by the caller as steps run.
        max_depth: Most tokens the draft model drafts in a row, 0 to 16.
        can_compute: Whether a drafter computes drafts, at known costs.
        initial_acceptance: The draft model's assumed acceptance before any was measured.
    """

    def __init__(
        self, costs: StepCosts, *, max_depth: int, can_compute: bool, initial_acceptance: float = DEFAULT_ACCEPTANCE
    ) -> None:
        assert costs.has_draft or not can_compute, "a draft model is profiled before it is used"
        self.costs = costs
        self._max_depth = max_depth
        self._can_compute = can_compute and max_depth > 0
        self._acceptance = RunningAcceptance(_HORIZON, initial_acceptance, _PRIOR_TRIALS)
        self._records: dict[str, _Record] = {}
        self._output_tokens = _OUTPUT_TOKENS
        self._num_outputs = 0
        self._is_drafting = False
        self._hold: _Hold | None = None
        # Seconds saved up for exploration; negative while exploration on credit is still to be repaid.
        self._credit = 0.0
        self._trial: _Trial | None = None
        self._step = 0

    def choose(self, candidates: Sequence[DraftCandidate], prefill_tokens: int = 0) -> DepthDecision:
        """Choose depths for the next step's decodes, computed beside ``prefill_tokens`` tokens of prompt chunks."""
        self._step += 1
        return self._decide(candidates, prefill_tokens)

    def observe_acceptance(self, request_id: str, drafted: int, accepted: int) -> None:
        """Count how many of one sequence's ``drafted`` computed draft tokens were accepted (not found ones)."""
        if drafted <= 0:
            return
        self._acceptance.observe(drafted, accepted)
        record = self._records.get(request_id)
        if record is None:
            own = RunningAcceptance(_SEQUENCE_HORIZON, self._acceptance.rate, _PRIOR_TRIALS)
            record = self._records[request_id] = _Record(own, self._step)
        record.acceptance.observe(drafted, accepted)
        record.step = self._step

    def acceptance_of(self, request_id: str) -> float | None:
        """A sequence's acceptance, faded to that of all sequences by its age; None if it never drafted."""
        record = self._records.get(request_id)
        if record is None:
            return None
        weight = math.exp((record.step - self._step) / _RECORD_STEPS)
        return record.acceptance.rate_towards(self._acceptance.rate, weight)

    def observe_output(self, num_tokens: int) -> None:
        """Count the length of an output that ended, whichever drafter served it."""
        self._num_outputs = min(self._num_outputs + 1, _OUTPUT_HORIZON)
        self._output_tokens += (num_tokens - self._output_tokens) / (self._num_outputs + _OUTPUT_PRIOR)

    def forget(self, request_id: str) -> None:
        """Drop the record of a sequence that has ended. Unknown ids are ignored."""
        self._records.pop(request_id, None)

    def _decide(self, candidates: Sequence[DraftCandidate], prefill_tokens: int) -> DepthDecision:
        if not any(candidate.ceiling > 0 for candidate in candidates):
            zeros = (0,) * len(candidates)
            return DepthDecision(zeros, zeros, DepthReason.NOTHING.value)
        times = StepTimes(self.costs, len(candidates), prefill_tokens)
        plain = plan_none(candidates, times)
        base = plan_found(candidates, times)
        if base.goodput < (1 + _MARGIN_STAY) * plain.goodput:
            base = plain
        plan, reason = base, DepthReason.NOTHING
        if self._can_compute:
            plan, reason = self._consider_computing(candidates, prefill_tokens, times, base)
        if reason is not DepthReason.EXPLORE and (any(plan.computed_depths) or any(plan.found_depths)):
            reason = DepthReason.PAYS
        return DepthDecision(plan.computed_depths, plan.found_depths, reason.value)

    def _consider_computing(
        self, candidates: Sequence[DraftCandidate], prefill_tokens: int, times: StepTimes, base: DepthPlan
    ) -> tuple[DepthPlan, DepthReason]:
        """The plan to carry out, and its reason."""
        if self._hold is not None and self._hold.covers(self._step, len(candidates), prefill_tokens):
            self._save_up(times)
            return base, self._hold.reason
        required = 1 + (_MARGIN_STAY if self._is_drafting else _MARGIN_ON)
        reason = DepthReason.COST
        if can_pay(len(candidates), self._max_depth, times, required):
            reason = DepthReason.ACCEPTANCE
            planner = self._planner(candidates, times, base)
            measured = self._acceptance.trials >= _MEASURED_TRIALS
            plan = planner.plan(self._max_depth if measured else min(self._max_depth, DEFAULT_SPECULATION_DEPTH))
            if plan is not base and plan.goodput >= required * base.goodput:
                # The part of the plan that fits the catch-up limit must pay as well, or be the first attempt.
                budget = CATCH_UP_TOKENS if measured else _UNMEASURED_CATCH_UP_TOKENS
                plan = _within_catch_up(candidates, plan, planner, budget)
                if not measured or plan.goodput >= required * base.goodput:
                    self._is_drafting, self._hold = True, None
                    return plan, DepthReason.PAYS
        self._is_drafting = False
        self._save_up(times)
        explored = self._explore(candidates, times, base, required, reason)
        if explored is not None:
            self._hold = None
            return explored, DepthReason.EXPLORE
        self._hold = _Hold(reason, self._step + _HOLD_STEPS, len(candidates), prefill_tokens > 0)
        return base, reason

    def _planner(
        self,
        candidates: Sequence[DraftCandidate],
        times: StepTimes,
        base: DepthPlan,
        acceptance: float | None = None,
    ) -> ComputedPlanner:
        """A planner that uses each sequence's own acceptance, or the given one for all."""
        everyone = self._acceptance.rate
        # The chance that a token is not the output's last: draft tokens past the end are worth nothing.
        survival = 1.0 - 1.0 / max(2.0, self._output_tokens)
        rates = [
            survival
            * (
                acceptance
                if acceptance is not None
                else candidate.acceptance
                if candidate.acceptance is not None
                else everyone
            )
            for candidate in candidates
        ]
        lifetimes = [min(self._output_tokens, candidate.remaining_tokens) for candidate in candidates]
        return ComputedPlanner(candidates, times, rates, lifetimes, base)

    def _save_up(self, times: StepTimes) -> None:
        if self._trial is not None and self._trial.is_over(self._step, self.costs.draft_seconds_spent):
            self._credit -= self.costs.draft_seconds_spent - self._trial.spent_before
            self._trial = None
        self._credit += EXPLORATION_SHARE * times.plain

    def _explore(
        self,
        candidates: Sequence[DraftCandidate],
        times: StepTimes,
        base: DepthPlan,
        required: float,
        reason: DepthReason,
    ) -> DepthPlan | None:
        """A plan in which a few sequences draft, once its cost is saved up, whatever its gain; else None."""
        able = [index for index, candidate in enumerate(candidates) if candidate.computed_ceiling > 0]
        if not able:
            return None
        able.sort(key=lambda index: (base.found_depths[index] > 0, candidates[index].catch_up_tokens))
        depths = {
            index: min(_EXPLORED_DEPTH, self._max_depth, candidates[index].computed_ceiling)
            for index in able[:_EXPLORED_SEQUENCES]
        }
        verification = times.verify(sum(depths.values())) - times.plain
        drafting = times.catch_up(sum(candidates[index].catch_up_tokens for index in depths))
        drafting += max(depths.values()) * times.draft(len(depths))
        cost = verification + drafting
        if self._trial is None:
            if min(cost, _TRIAL_SAVINGS * times.plain) > self._credit or cost > _TRIAL_LIMIT * times.plain:
                return None
            if reason is DepthReason.ACCEPTANCE:
                optimist = self._planner(candidates, times, base, acceptance=1.0)
                best = optimist.plan(self._max_depth)
                if best is base or best.goodput < required * base.goodput:
                    return None
                self._acceptance.fade(_EXPLORED_TRIALS)
            if cost <= self._credit:
                self._credit = 0.0
            else:
                spent = self.costs.draft_seconds_spent
                self._trial = _Trial(self._step + _TRIAL_STEPS, spent, spent + _TRIAL_LOAN * times.plain)
        if self._trial is not None:
            self._credit -= verification
        return self._planner(candidates, times, base).evaluate(depths)


def _within_catch_up(
    candidates: Sequence[DraftCandidate], plan: DepthPlan, planner: ComputedPlanner, budget: int
) -> DepthPlan:
    """The part of a plan that needs at most ``budget`` catch-up tokens; at least the sequence that needs fewest."""
    drafting = [index for index, depth in enumerate(plan.computed_depths) if depth]
    drafting.sort(key=lambda index: candidates[index].catch_up_tokens)
    spent = list(accumulate(candidates[index].catch_up_tokens for index in drafting))
    fitting = max(1, bisect_right(spent, budget))
    if fitting == len(drafting):
        return plan
    return planner.evaluate({index: plan.computed_depths[index] for index in drafting[:fitting]})
