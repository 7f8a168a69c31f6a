"""An engine that exists in numbers only: answers of random lengths, and steps that cost what a formula says."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import exp
from typing import TYPE_CHECKING

from helix_jobs.engine.protocol import EngineCounters
from helix_jobs.forecast.length_model import Answer
from helix_jobs.forecast.step_costs import StepCosts

if TYPE_CHECKING:
    from collections.abc import Sequence
    from random import Random

PROMPT_SECONDS = 0.00002


@dataclass
class MadeUpEngine:
    """Runs jobs of (prompt tokens, output tokens) step by step, and measures itself.

    Attributes:
        slots: Sequences at once.
        slowness: Of every step, a factor.
        noise: Standard deviation of the logarithm of a step's time.
    """

    rng: Random
    slots: int = 16
    slowness: float = 1.0
    noise: float = 0.1
    stretches: list[StepCosts] = field(default_factory=lambda: [StepCosts() for _ in range(8)])
    seconds: float = 0.0

    def run(self, jobs: Sequence[tuple[int, int]]) -> float:
        """Seconds until all jobs have ended."""
        waiting = list(reversed(jobs))
        left: list[int] = []
        counters, total, emitted = EngineCounters(), sum(tokens for _, tokens in jobs), 0
        while waiting or left:
            decodes, prompt_tokens, new = len(left), 0, []
            while waiting and len(left) + len(new) < self.slots:
                prompt, tokens = waiting.pop()
                prompt_tokens += prompt
                new.append(tokens)
            cost = (0.004 + 0.0005 * decodes if decodes else 0.0) + PROMPT_SECONDS * prompt_tokens
            cost *= self.slowness * exp(self.rng.gauss(0.0, self.noise))
            self.seconds += cost
            after = EngineCounters(
                steps=counters.steps + 1,
                sequence_steps=counters.sequence_steps + decodes + len(new),
                decode_sequence_steps=counters.decode_sequence_steps + decodes,
                prompt_tokens=counters.prompt_tokens + prompt_tokens,
                completion_tokens=counters.completion_tokens + decodes + len(new),
            )
            stretch = min(emitted * len(self.stretches) // total, len(self.stretches) - 1)
            self.stretches[stretch].add_step(counters, after, cost)
            emitted += decodes + len(new)
            counters = after
            left = [tokens - 1 for tokens in (*left, *new) if tokens > 1]
        return self.seconds


def made_up_jobs(rng: Random, count: int, limit: int, spread: float = 0.8) -> list[tuple[int, int, bool]]:
    """Jobs of (prompt tokens, output tokens, whether it ended by itself); longer prompts have longer answers."""
    jobs = []
    for _ in range(count):
        prompt = int(rng.uniform(20, 400))
        tokens = max(1, int((10 + prompt / 8) * exp(rng.gauss(0.0, spread))))
        jobs.append((prompt, min(tokens, limit), tokens < limit))
    return jobs


def seen(jobs: Sequence[tuple[int, int, bool]], limit: int) -> list[Answer]:
    """The jobs' answers as a trial sees them."""
    return [Answer(prompt, limit, tokens, ended) for prompt, tokens, ended in jobs]
