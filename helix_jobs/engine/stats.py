"""StepStatistics: what the engine counts while it runs. Data only."""

from __future__ import annotations

from dataclasses import dataclass

from helix_jobs.engine.protocol import EngineCounters


@dataclass(slots=True)
class StepStatistics:
    """Mutable totals; ``snapshot`` freezes them. The fields are those of ``EngineCounters``."""

    steps: int = 0
    sequence_steps: int = 0
    decode_sequence_steps: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0

    def snapshot(self, peak_blocks: int) -> EngineCounters:
        """An immutable copy."""
        return EngineCounters(
            steps=self.steps,
            sequence_steps=self.sequence_steps,
            decode_sequence_steps=self.decode_sequence_steps,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            draft_tokens=self.draft_tokens,
            accepted_tokens=self.accepted_tokens,
            peak_blocks=peak_blocks,
        )
