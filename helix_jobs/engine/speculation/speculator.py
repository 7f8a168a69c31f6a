"""Speculator: what each sequence of a step drafts, how much, and from which source; and learning how that went."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from helix_jobs.engine.request import FinishReason
from helix_jobs.engine.speculation.depth.controller import DEFAULT_ACCEPTANCE, DepthController
from helix_jobs.engine.speculation.depth.costs import StepCosts
from helix_jobs.engine.speculation.depth.plan import DraftCandidate
from helix_jobs.engine.speculation.depth.profile import measure_costs
from helix_jobs.engine.speculation.drafters.draft_model import DraftModelDrafter
from helix_jobs.engine.speculation.drafters.lookup import NO_MATCH, LookupDrafter
from helix_jobs.engine.speculation.drafters.protocol import NO_DRAFT_TOKENS, NOTHING_COMPUTED, Draft

if TYPE_CHECKING:
    from collections.abc import Sequence as SequenceOf

    from helix_jobs.engine.config import EngineConfig
    from helix_jobs.engine.model.runner import ModelRunner
    from helix_jobs.engine.schedule.sequence import Sequence
    from helix_jobs.engine.speculation.depth.costs import CostProfile
    from helix_jobs.engine.speculation.drafters.protocol import Proposal
    from helix_jobs.engine.speculation.speculative import Lesson
    from helix_jobs.engine.speculation.turn import Turn

# With a fixed depth a looked-up draft replaces the model's from so many matching tokens on. Match length decides, not
# confidence: confidence is learned from other requests, and a seeded output must not depend on them.
_TRUSTED_MATCH: Final = 4


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

    def speculate(self, turns: SequenceOf[Turn]) -> Proposal:
        """Give the decodes of a step their drafts, at the depths that seem best."""
        decodes = [turn for turn in turns if turn.is_decode]
        prefills = [turn for turn in turns if not turn.is_decode]
        for turn in decodes:
            self._look_up(turn)
        if self._controller is None:
            self._choose_fixed(decodes)
        else:
            self._choose_adaptively(self._controller, decodes, prefills)
            prefills = []
        drafting = [turn for turn in decodes if turn.depth > 0]
        if self._model is None or not (drafting or prefills):
            return NOTHING_COMPUTED
        return self._model.draft(drafting, prefills)

    def learn(self, lesson: Lesson) -> None:
        """Learn what verification made of a step's drafts and, where it is known, what the step took."""
        for turn in lesson.turns:
            if turn.verdict is None or not turn.draft.token_ids:
                continue
            drafted, accepted = len(turn.draft.token_ids), turn.verdict.num_accepted
            if turn.match is not NO_MATCH and self._lookup is not None:
                self._lookup.observe(turn.sequence, turn.match, drafted, accepted)
            elif self._controller is not None:
                self._controller.observe_acceptance(turn.sequence.request_id, drafted, accepted)
        if self._costs is not None:
            _learn_costs(self._costs, lesson)

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

    def _look_up(self, turn: Turn) -> None:
        params = turn.sequence.params
        if self._controller is not None and not params.is_greedy and params.seed is not None:
            # The output would depend on the depth, and the depth on what else is in the batch.
            turn.ceiling = 0
        if self._lookup is not None and turn.ceiling:
            turn.match = self._lookup.match(turn.sequence, turn.ceiling)

    def _choose_fixed(self, decodes: SequenceOf[Turn]) -> None:
        needed = 0 if self._model is None else _TRUSTED_MATCH
        for turn in decodes:
            is_trusted = turn.match.match_length >= needed
            _take_match(turn, len(turn.match.token_ids) if is_trusted else 0)
            if turn.draft is NO_DRAFT_TOKENS:
                turn.depth = turn.ceiling

    def _choose_adaptively(
        self, controller: DepthController, decodes: SequenceOf[Turn], prefills: SequenceOf[Turn]
    ) -> None:
        candidates = [self._candidate(controller, turn) for turn in decodes]
        decision = controller.choose(candidates, sum(turn.num_known for turn in prefills))
        for turn, found, computed in zip(decodes, decision.lookup_depths, decision.model_depths, strict=True):
            _take_match(turn, found)
            turn.depth = computed

    def _candidate(self, controller: DepthController, turn: Turn) -> DraftCandidate:
        sequence = turn.sequence
        return DraftCandidate(
            ceiling=turn.ceiling,
            lookup_confidence=turn.match.confidence,
            model_acceptance=controller.acceptance_of(sequence.request_id),
            catch_up_tokens=0 if self._model is None else self._model.missing_tokens(sequence),
            remaining_tokens=max(1, sequence.max_len - len(sequence)),
        )


def _take_match(turn: Turn, depth: int) -> None:
    """Draft the first ``depth`` tokens that were looked up."""
    if depth:
        turn.draft = Draft(turn.match.token_ids[:depth])
    else:
        turn.match = NO_MATCH


def _learn_costs(costs: StepCosts, lesson: Lesson) -> None:
    awaited, num_decodes = lesson.proposal.awaited, sum(turn.is_decode for turn in lesson.turns)
    if lesson.draft_seconds is not None:
        costs.observe_draft(lesson.proposal.passes, lesson.draft_seconds)
    if lesson.seconds is None:
        return
    if awaited is None:
        costs.observe_target(lesson.num_tokens, lesson.seconds, sequences=num_decodes)
    else:
        passes = [one.plan.num_tokens for one in awaited.passes]
        costs.observe_together(lesson.num_tokens, passes, lesson.seconds, sequences=num_decodes)
