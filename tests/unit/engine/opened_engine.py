"""An engine's parts, for tests that look inside or put something else in a part's place. Only this file names them.

Trade-off: the engine itself takes none of these parts from outside, because nobody but a test would give it others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from helix_jobs.engine.engine import Engine
    from helix_jobs.engine.model.runner import ModelRunner
    from helix_jobs.engine.schedule.block_pool import BlockPool
    from helix_jobs.engine.schedule.scheduler import Scheduler
    from helix_jobs.engine.speculation.depth.controller import DepthController
    from helix_jobs.engine.speculation.depth.costs import StepCosts
    from helix_jobs.engine.speculation.drafters.draft_model import DraftModelDrafter
    from helix_jobs.engine.speculation.speculative import SpeculativeStep
    from helix_jobs.engine.speculation.speculator import Speculator
    from helix_jobs.engine.speculation.target_pass import TargetPass
    from helix_jobs.engine.speculation.turn import Turn
    from helix_jobs.engine.text.codec import TextCodec

Step = TypeVar("Step", bound="SpeculativeStep")


@dataclass(frozen=True, slots=True)
class OpenedEngine:
    """The parts of one engine, as they are at the moment of asking."""

    engine: Engine

    @property
    def scheduler(self) -> Scheduler:
        return self.engine._scheduler

    @property
    def pool(self) -> BlockPool:
        return self.engine._pool

    @property
    def codec(self) -> TextCodec:
        return self.engine._codec

    @property
    def speculator(self) -> Speculator:
        return self.engine._speculator

    @property
    def controller(self) -> DepthController:
        """What chooses the depths of an engine whose depths are adaptive."""
        controller = self.speculator._controller
        assert controller is not None, "the engine's depth is fixed"
        return controller

    @property
    def drafter(self) -> DraftModelDrafter:
        """The drafter that computes."""
        drafter: Any = self.speculator._drafters.computing
        assert drafter is not None, "the engine has no draft model"
        return drafter  # type: ignore[no-any-return]

    @property
    def step(self) -> SpeculativeStep:
        return self.engine._step

    @property
    def target_pass(self) -> TargetPass:
        return self.step._pass

    @property
    def target(self) -> ModelRunner:
        return self.step._target

    @property
    def draft(self) -> ModelRunner:
        return self.drafter._runner

    @property
    def num_unfinished(self) -> int:
        """Sequences that wait or run."""
        return len(self.scheduler.waiting) + len(self.scheduler.running)

    @property
    def is_empty(self) -> bool:
        """Whether every block is free."""
        return self.pool.num_free == self.engine.info.num_blocks

    def replace_step(self, make: Callable[..., Step], *arguments: Any, **named: Any) -> Step:
        """Put ``make(step, ...)`` in the step's place, and return it."""
        made = make(self.step, *arguments, **named)
        self.engine._step = made
        return made

    def replace_controller(self, make: Callable[..., DepthController], *arguments: Any) -> None:
        """Put ``make(controller, ...)`` in the place of what chooses depths."""
        self.speculator._controller = make(self.controller, *arguments)

    def limit_scored_rows(self, most: int) -> None:
        """Let a step score so many rows of prompts at most; of itself an engine allows what fits the memory."""
        self.scheduler._scored_rows = most

    @property
    def costs(self) -> StepCosts:
        """What an engine whose depths are adaptive knows about the cost of steps."""
        costs = self.speculator._costs
        assert costs is not None, "the engine's depth is fixed"
        return costs

    def learn_no_costs(self) -> None:
        """Keep the costs of steps as they are known now."""
        self.speculator._costs = None

    def make_waits_dear(self) -> None:
        """Let both models believe that waiting for their device costs much, so that drafts stay on it."""
        for runner in (self.target, self.draft):
            runner.has_dear_waits = True

    def watch_verified(self, note: Callable[[Sequence[Turn]], object]) -> None:
        """Call ``note`` with the turns that a step is about to verify."""
        verify = self.step._verify

        def noting(turns: Sequence[Turn], *rest: Any) -> None:
            note(turns)
            verify(turns, *rest)

        self.step._verify = noting  # type: ignore[method-assign]


def opened(engine: Engine) -> OpenedEngine:
    """The parts of ``engine``."""
    return OpenedEngine(engine)
