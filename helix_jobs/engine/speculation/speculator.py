"""Speculator: chooses each sequence's drafter and depth in a step, and learns from the verdicts."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from helix_jobs.engine.speculation.depth.controller import DEFAULT_ACCEPTANCE, DepthController, DepthReason
from helix_jobs.engine.speculation.depth.costs import StepCosts
from helix_jobs.engine.speculation.depth.plan import DraftCandidate
from helix_jobs.engine.speculation.depth.profile import measure_costs
from helix_jobs.engine.speculation.drafters.forced import FORCED, force
from helix_jobs.engine.speculation.drafters.protocol import NO_DRAFT_TOKENS, NOTHING_COMPUTED, Drafters
from helix_jobs.engine.speculation.drafters.registry import build_drafters

if TYPE_CHECKING:
    from collections.abc import Sequence as SequenceOf

    from helix_jobs.engine.config import EngineConfig
    from helix_jobs.engine.model.runner import ModelRunner
    from helix_jobs.engine.schedule.sequence import Sequence
    from helix_jobs.engine.speculation.depth.costs import CostProfile
    from helix_jobs.engine.speculation.drafters.protocol import Proposal
    from helix_jobs.engine.speculation.speculative import Lesson
    from helix_jobs.engine.speculation.turn import Turn

# The reason counted for a step whose drafts came from several drafters.
MIXED: Final = "mixed"


class Speculator:
    """Drafts what grammars force, and goes on behind it with what drafters find or compute.

    It asks the drafters that find drafts, then the depth controller, then the drafter that computes drafts.

    With a controller the depths are adaptive: the computing drafter does nothing, not even for prompts, until it is
    asked to draft. Without one every decode drafts to its ceiling, and the computing drafter keeps up with the prompts.

    Trade-off: the first drafter that finds anything is taken, even if the next would have found more: a request's
    drafts then depend only on the settings and the request itself.

    Args:
        drafters: All drafters.
        controller: Chooses depths; None for a fixed depth.
        costs: The controller's costs, refined by every step.
    """

    def __init__(
        self, drafters: Drafters, controller: DepthController | None = None, costs: StepCosts | None = None
    ) -> None:
        self._drafters = drafters
        self._controller = controller
        self._costs = costs
        self._reasons: Counter[str] = Counter()

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
        """Build as configured. An adaptive depth without given ``costs`` measures them now."""
        speculation = config.speculation
        if not speculation.is_on:
            return cls(Drafters())
        drafters = build_drafters(speculation.drafters, draft, vocab_size)
        if not speculation.adaptive or not (speculation.drafters or draft):
            # What a grammar forces always pays: these tokens have to be computed anyway, and here in fewer steps.
            return cls(drafters)
        if costs is None:
            costs = measure_costs(target, draft, max_batch_size=config.max_batch_size, max_depth=speculation.max_depth)
        step_costs = StepCosts(costs)
        controller = DepthController(
            step_costs,
            max_depth=speculation.max_depth,
            can_compute=drafters.computing is not None,
            initial_acceptance=initial_acceptance,
        )
        return cls(drafters, controller, step_costs)

    @property
    def drafts_any(self) -> bool:
        """Whether it may draft for any sequence; otherwise only for those with a grammar, if speculation is on."""
        return bool(self._drafters.all)

    @property
    def reasons(self) -> dict[str, int]:
        """Number of steps for each reason to draft as they did; empty with a fixed depth.

        A reason is the name of the drafter whose drafts a step verified (``forced`` for what grammars force), ``mixed``
        for several, or a ``DepthReason``.
        """
        return dict(self._reasons)

    def cost_profile(self) -> CostProfile | None:
        """What steps cost at present; None with a fixed depth."""
        return None if self._costs is None else self._costs.profile()

    def speculate(self, turns: SequenceOf[Turn]) -> Proposal:
        """Draft for the decodes of a step, at the depths that promise most."""
        decodes = [turn for turn in turns if turn.is_decode]
        prefills = [turn for turn in turns if not turn.is_decode and turn.sequence.wants_output]
        self._find(decodes)
        if self._controller is None:
            self._choose_fixed(decodes)
        else:
            self._choose_adaptively(self._controller, decodes, prefills)
            prefills = []
        prefills = [turn for turn in prefills if not turn.sequence.is_draft_cut]
        computing = self._drafters.computing
        drafting = [turn for turn in decodes if turn.drafter is not None and turn.drafter is computing]
        if computing is None or not (drafting or prefills):
            return NOTHING_COMPUTED
        return computing.propose(drafting, prefills)

    def learn(self, lesson: Lesson) -> None:
        """Learn from a step's verdicts and, where its time is known, from that time."""
        for turn in lesson.turns:
            if turn.drafter is None or turn.verdict is None or not turn.draft.token_ids:
                continue
            sequence, drafted, accepted = turn.sequence, len(turn.draft.token_ids), turn.verdict.num_accepted
            accepted -= len(turn.forced)
            if accepted < 0:  # the verdict ends before the drafter's first token, which teaches nothing
                continue
            turn.drafter.observe(sequence, drafted, accepted)
            if self._controller is not None and turn.drafter is self._drafters.computing:
                self._controller.observe_acceptance(sequence.request_id, drafted, accepted)
        if self._costs is not None:
            _learn_costs(self._costs, lesson)

    def forget(self, sequence: Sequence) -> None:
        """Drop a sequence that has ended; keep what other requests can use of it."""
        for drafter in self._drafters.all:
            drafter.forget(sequence)
        if self._controller is not None:
            if sequence.finish_reason is not None and sequence.wants_output:
                self._controller.observe_output(sequence.num_output_tokens)
            self._controller.forget(sequence.request_id)

    def clear_blocks(self, blocks: SequenceOf[int]) -> None:
        """Set cache blocks of drafters back to zero."""
        for drafter in self._drafters.all:
            drafter.clear(blocks)

    def _find(self, decodes: SequenceOf[Turn]) -> None:
        force(decodes)
        for turn in decodes:
            params = turn.sequence.params
            if self._controller is not None and not params.is_greedy and params.seed is not None:
                # With a guess its output would depend on the depth, and so on what else is in the batch.
                turn.ceiling = len(turn.forced)
            turn.depth = turn.ceiling - len(turn.forced)
        for drafter in self._drafters.finding:
            asked = [turn for turn in decodes if turn.depth and turn.drafter is None]
            drafter.propose(asked)
            for turn in asked:
                if turn.draft.token_ids:
                    turn.drafter = drafter

    def _choose_fixed(self, decodes: SequenceOf[Turn]) -> None:
        computing = self._drafters.computing
        if computing is None:
            return
        for turn in decodes:
            if not turn.draft.is_trusted and not turn.sequence.is_draft_cut:
                turn.draft, turn.drafter = NO_DRAFT_TOKENS, computing if turn.depth else None

    def _choose_adaptively(
        self, controller: DepthController, decodes: SequenceOf[Turn], prefills: SequenceOf[Turn]
    ) -> None:
        candidates = [self._candidate(controller, turn) for turn in decodes]
        decision = controller.choose(candidates, sum(turn.num_known for turn in prefills))
        for turn, found, computed in zip(decodes, decision.found_depths, decision.computed_depths, strict=True):
            turn.forced = turn.forced[:found]
            turn.draft, turn.depth = turn.draft.first(found - len(turn.forced)), computed
            if not turn.draft.token_ids:
                turn.drafter = self._drafters.computing if computed else None
        self._reasons[_name_of(decision.reason, decodes)] += 1

    def _candidate(self, controller: DepthController, turn: Turn) -> DraftCandidate:
        sequence, computing = turn.sequence, self._drafters.computing
        return DraftCandidate(
            ceiling=turn.ceiling,
            confidence=(1.0,) * len(turn.forced) + turn.draft.confidence,
            acceptance=controller.acceptance_of(sequence.request_id),
            catch_up_tokens=0 if computing is None else computing.missing_tokens(sequence),
            remaining_tokens=max(1, sequence.max_len - len(sequence)),
            num_forced=len(turn.forced),
            can_compute=not sequence.is_draft_cut,
        )


def _name_of(reason: str, decodes: SequenceOf[Turn]) -> str:
    """The reason as it is counted: the drafter's name where drafting pays."""
    if reason != DepthReason.PAYS:
        return reason
    names = {turn.drafter.name for turn in decodes if turn.drafter is not None}
    names |= {FORCED for turn in decodes if turn.forced}
    return names.pop() if len(names) == 1 else MIXED


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
