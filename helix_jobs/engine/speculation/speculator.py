"""Speculator: what each sequence of a step drafts, how much, and from which source; and learning how that went."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from helix_jobs.engine.request import FinishReason
from helix_jobs.engine.speculation.depth.controller import DEFAULT_ACCEPTANCE, DepthController
from helix_jobs.engine.speculation.depth.costs import StepCosts
from helix_jobs.engine.speculation.depth.plan import DraftCandidate
from helix_jobs.engine.speculation.depth.profile import measure_costs
from helix_jobs.engine.speculation.drafters.draft_model import DraftModelDrafter
from helix_jobs.engine.speculation.drafters.lookup import NO_MATCH, LookupDrafter
from helix_jobs.engine.speculation.drafters.protocol import NO_DRAFT_TOKENS, Draft, Proposal

if TYPE_CHECKING:
    from collections.abc import Sequence as SequenceOf

    from helix_jobs.engine.config import EngineConfig
    from helix_jobs.engine.model.runner import ModelRunner
    from helix_jobs.engine.schedule.scheduler import Decode, Prefill, Schedule
    from helix_jobs.engine.schedule.sequence import Sequence
    from helix_jobs.engine.speculation.depth.costs import CostProfile
    from helix_jobs.engine.speculation.drafters.awaited_drafts import AwaitedDrafts
    from helix_jobs.engine.speculation.drafters.lookup import LookupMatch
    from helix_jobs.engine.speculation.speculative import Lesson

# With a fixed depth a looked-up draft replaces the model's from so many matching tokens on. Not its confidence decides:
# that is learned from the company, and a seeded output must not depend on it.
_TRUSTED_MATCH: Final = 4


@dataclass(frozen=True, slots=True)
class Speculation:
    """The drafts of one step, and what is needed to learn from their verification.

    Attributes:
        proposal: For verification.
        matches: One per decode: the lookup its draft was taken from, ``NO_MATCH`` for a model's draft or none.
        draft_seconds: Time of the draft model's passes, if they ran.
        has_waited: Whether drafts came down from the device, which then has nothing left to do.
        awaited: The draft model's passes, if they are to run with the target's; then the proposal lacks their tokens.
    """

    proposal: Proposal
    matches: tuple[LookupMatch, ...]
    draft_seconds: float = 0.0
    has_waited: bool = False
    awaited: AwaitedDrafts | None = None


class Speculator:
    """Looks drafts up, asks the depth controller, runs the draft model.

    With a controller the depths are adaptive, and the draft model computes nothing, not even prompts, until it is asked
    to draft. Without one every decode drafts to its ceiling, and the draft model keeps up with the prompts.

    Args:
        model: The draft model, or None.
        lookup: The lookup drafter, or None.
        controller: Chooses depths, or None for a fixed one.
        costs: Learns from the steps; the controller's.
    """

    def __init__(
        self,
        model: DraftModelDrafter | None,
        lookup: LookupDrafter | None,
        controller: DepthController | None = None,
        costs: StepCosts | None = None,
    ) -> None:
        self._model = model
        self._lookup = lookup
        self._controller = controller
        self._costs = costs

    @classmethod
    def build(
        cls,
        target: ModelRunner,
        draft: ModelRunner | None,
        config: EngineConfig,
        vocab_size: int,
        *,
        costs: CostProfile | None = None,
        initial_acceptance: float = DEFAULT_ACCEPTANCE,
    ) -> Speculator:
        """As configured. With an adaptive depth and no ``costs`` given, they are measured now."""
        speculation = config.speculation
        lookup = LookupDrafter() if speculation.lookup and speculation.is_on else None
        model = None if draft is None else DraftModelDrafter(draft, vocab_size)
        if not speculation.adaptive or (lookup is None and model is None):
            return cls(model, lookup)
        if costs is None:
            costs = measure_costs(target, draft, max_batch_size=config.max_batch_size, max_depth=speculation.max_depth)
        step_costs = StepCosts(costs)
        controller = DepthController(
            step_costs,
            max_depth=speculation.max_depth,
            has_model=model is not None,
            initial_acceptance=initial_acceptance,
        )
        return cls(model, lookup, controller, step_costs)

    @property
    def can_draft(self) -> bool:
        """Whether there is anything that drafts."""
        return self._model is not None or self._lookup is not None

    @property
    def reasons(self) -> dict[str, int]:
        """How many steps drafted as they did for which reason; empty with a fixed depth."""
        return {} if self._controller is None else self._controller.reasons

    def cost_profile(self) -> CostProfile | None:
        """What steps cost by now; None with a fixed depth."""
        return None if self._costs is None else self._costs.profile()

    def speculate(self, schedule: Schedule, *, is_idle: bool = True) -> Speculation:
        """Draft for a step's decodes.

        Args:
            schedule: The step.
            is_idle: Whether the device has nothing else to do: only then does the time of drafting say what it costs.
        """
        decodes = schedule.decodes
        ceilings = [self._ceiling(decode) for decode in decodes]
        matches = [self._match(decode, ceiling) for decode, ceiling in zip(decodes, ceilings, strict=True)]
        prefills: tuple[Prefill, ...] = ()
        if self._controller is None:
            needed = 0 if self._model is None else _TRUSTED_MATCH
            lookup_depths = [len(match.token_ids) if match.match_length >= needed else 0 for match in matches]
            model_depths = [0 if own else ceiling for own, ceiling in zip(lookup_depths, ceilings, strict=True)]
            prefills = schedule.prefills
        else:
            candidates = [self._candidate(*one) for one in zip(decodes, ceilings, matches, strict=True)]
            num_prefill_tokens = sum(prefill.num_tokens for prefill in schedule.prefills)
            decision = self._controller.choose(candidates, num_prefill_tokens)
            lookup_depths, model_depths = list(decision.lookup_depths), list(decision.model_depths)
        matches = [match if depth else NO_MATCH for match, depth in zip(matches, lookup_depths, strict=True)]
        drafts = [
            Draft(match.token_ids[:depth]) if depth else NO_DRAFT_TOKENS
            for match, depth in zip(matches, lookup_depths, strict=True)
        ]
        places = [place for place, depth in enumerate(model_depths) if depth > 0]
        if self._model is None or not (places or prefills):
            return Speculation(Proposal(tuple(drafts)), tuple(matches))
        asked = [(decodes[place].sequence, model_depths[place]) for place in places]
        if self._model.has_dear_waits:
            for place in places:
                drafts[place] = Draft((), num_awaited=model_depths[place])
            awaited = self._model.draft_on_device(asked, prefills)
            return Speculation(Proposal(tuple(drafts)), tuple(matches), awaited=awaited)
        started = time.perf_counter()
        made = self._model.draft(asked, prefills)
        seconds = time.perf_counter() - started
        for place, draft in zip(places, made.drafts, strict=True):
            drafts[place] = draft
        has_waited = bool(made.drafts)
        if self._costs is not None and has_waited and is_idle:
            self._costs.observe_draft(made.passes, seconds)
        return Speculation(Proposal(tuple(drafts), made.draft_probs), tuple(matches), seconds, has_waited)

    def receive(self, speculation: Speculation, token_ids: SequenceOf[int]) -> Speculation:
        """Put awaited drafts in their places.

        Args:
            speculation: The step's, with passes that are awaited.
            token_ids: What they left on the device.
        """
        assert speculation.awaited is not None, "there is something to receive"
        made = iter(speculation.awaited.receive(token_ids))
        drafts = tuple(next(made) if draft.num_awaited else draft for draft in speculation.proposal.drafts)
        return replace(speculation, proposal=Proposal(drafts))

    def learn(self, lesson: Lesson) -> None:
        """Learn what verification made of a step's drafts and, where it is known, what the step took."""
        speculation = lesson.speculation
        drafted = zip(lesson.decodes, speculation.proposal.drafts, speculation.matches, strict=True)
        for (decode, draft, match), accepted in zip(drafted, lesson.num_accepted, strict=True):
            if accepted is None or not draft.token_ids:
                continue
            if match is not NO_MATCH and self._lookup is not None:
                self._lookup.observe(decode.sequence, match, len(draft.token_ids), accepted)
            elif self._controller is not None:
                self._controller.observe_acceptance(decode.sequence.request_id, len(draft.token_ids), accepted)
        if self._costs is not None and lesson.seconds is not None:
            self._learn_cost(self._costs, lesson, lesson.seconds)

    def forget(self, sequence: Sequence) -> None:
        """A sequence has ended: keep what others can use of it."""
        if self._lookup is not None:
            if sequence.finish_reason in (FinishReason.STOP, FinishReason.LENGTH):
                self._lookup.learn(sequence)
            else:
                self._lookup.forget(sequence.request_id)
        if self._controller is not None:
            if sequence.finish_reason is not None:
                self._controller.observe_output(sequence.num_output_tokens)
            self._controller.forget(sequence.request_id)

    def clear_blocks(self, blocks: SequenceOf[int]) -> None:
        """Set cache blocks of the draft model back to zero."""
        if self._model is not None:
            self._model.clear_blocks(blocks)

    @staticmethod
    def _learn_cost(costs: StepCosts, lesson: Lesson, seconds: float) -> None:
        awaited = lesson.speculation.awaited
        if awaited is None:
            costs.observe_target(lesson.num_tokens, seconds, sequences=len(lesson.decodes))
        else:
            passes = [one.plan.num_tokens for one in awaited.passes]
            costs.observe_together(lesson.num_tokens, passes, seconds, sequences=len(lesson.decodes))

    def _ceiling(self, decode: Decode) -> int:
        """An adaptive depth depends on the company, and a sampled output on the depth: a seed asks for neither."""
        params = decode.sequence.params
        if self._controller is not None and not params.is_greedy and params.seed is not None:
            return 0
        return decode.depth

    def _match(self, decode: Decode, ceiling: int) -> LookupMatch:
        if self._lookup is None or ceiling == 0:
            return NO_MATCH
        return self._lookup.match(decode.sequence, ceiling)

    def _candidate(self, decode: Decode, ceiling: int, match: LookupMatch) -> DraftCandidate:
        sequence = decode.sequence
        assert self._controller is not None, "only a controller asks for candidates"
        return DraftCandidate(
            ceiling=ceiling,
            lookup_confidence=match.confidence,
            model_acceptance=self._controller.acceptance_of(sequence.request_id),
            catch_up_tokens=0 if self._model is None else self._model.missing_tokens(sequence),
            remaining_tokens=max(1, sequence.max_len - len(sequence)),
        )
