"""StepStatistics: the engine's running counts."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from helix_jobs.engine.protocol import EngineCounters

if TYPE_CHECKING:
    from collections.abc import Mapping

    from helix_jobs.engine.speculation.speculative import Emission, StepOutcome


@dataclass(slots=True)
class StepStatistics:
    """Mutable totals; ``snapshot`` freezes them. The fields are defined in ``EngineCounters``."""

    steps: int = 0
    sequence_steps: int = 0
    decode_sequence_steps: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0
    schedule_seconds: float = 0.0
    draft_seconds: float = 0.0
    target_seconds: float = 0.0
    attention_seconds: float = 0.0
    verify_seconds: float = 0.0
    forced_tokens: int = 0
    accepted_forced_tokens: int = 0

    def add_step(self, num_sequences: int, num_decodes: int, outcome: StepOutcome) -> None:
        """Count a step that passed. The engine counts its tokens, after it has applied stop strings."""
        self.steps += 1
        self.sequence_steps += num_sequences
        self.decode_sequence_steps += num_decodes
        self.draft_seconds += outcome.draft_seconds
        self.target_seconds += outcome.target_seconds
        self.attention_seconds += outcome.attention_seconds
        self.verify_seconds += outcome.verify_seconds

    def add_tokens(self, emission: Emission, num_new: int) -> None:
        """Count one sequence's tokens of a step, of which stop strings have left ``num_new``."""
        self.completion_tokens += num_new
        self.draft_tokens += emission.num_drafted
        self.accepted_tokens += emission.num_accepted
        self.forced_tokens += emission.num_forced
        self.accepted_forced_tokens += min(emission.num_forced, emission.num_accepted)

    def snapshot(
        self, *, peak_blocks: int, cached_prompt_tokens: int, preemptions: int, depth_reasons: Mapping[str, int]
    ) -> EngineCounters:
        """An immutable copy, completed by the counts that other parts of the engine keep."""
        return EngineCounters(
            **asdict(self),
            peak_blocks=peak_blocks,
            cached_prompt_tokens=cached_prompt_tokens,
            preemptions=preemptions,
            depth_reasons=depth_reasons,
        )
