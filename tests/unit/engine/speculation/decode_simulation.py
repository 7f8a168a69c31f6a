"""A batch that decodes in simulated time: true costs and acceptance are known, so depths can be judged in hindsight."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from helix_jobs.engine.speculation.depth.controller import DepthController, DraftCandidate
from helix_jobs.engine.speculation.depth.costs import CostProfile, StepCosts

if TYPE_CHECKING:
    from collections.abc import Callable

POINTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
MAX_DEPTH = 8


def line(fixed: float, flat_until: int, per_token: float) -> Callable[[int], float]:
    """Seconds by tokens: memory bound up to ``flat_until``, then compute bound."""
    return lambda tokens: fixed + per_token * max(tokens, flat_until) if tokens > 0 else 0.0


def measured(target: Callable[[int], float], draft: Callable[[int], float] | None = None) -> StepCosts:
    draft_points = {tokens: draft(tokens) for tokens in POINTS} if draft else None
    return StepCosts(CostProfile.from_measurements({tokens: target(tokens) for tokens in POINTS}, draft_points))


@dataclass
class Job:
    prompt: int
    output: int
    limit: int = 128


@dataclass
class _Running:
    name: str
    job: Job
    emitted: int = 0
    drafted: int = 0  # tokens in the draft's cache


@dataclass
class World:
    """What is true, whether or not the controller's profile says so."""

    target: Callable[[int], float]
    draft: Callable[[int], float]
    acceptance: Callable[[int], float]  # by step
    noise: float = 0.0
    seed: int = 1


@dataclass
class Outcome:
    seconds: float = 0.0
    steps: int = 0
    explored_seconds: float = 0.0
    reasons: Counter[str] = field(default_factory=Counter)
    # Whether the model drafted, by step.
    drafted: list[bool] = field(default_factory=list)


def run(world: World, jobs: list[Job], slots: int, depth: int | DepthController) -> Outcome:
    """Serve the jobs with continuous batching at a fixed depth or by a controller that learns on the way."""
    rng = random.Random(world.seed)
    controller = depth if isinstance(depth, DepthController) else None
    waiting = [_Running(str(index), job) for index, job in enumerate(jobs)][::-1]
    running: list[_Running] = []
    outcome = Outcome()
    while waiting or running:
        decodes = list(running)
        admitted = [waiting.pop() for _ in range(min(len(waiting), slots - len(running)))]
        prefill = sum(sequence.job.prompt for sequence in admitted)
        candidates = [_candidate(sequence, controller) for sequence in decodes]
        if controller is None:
            depths, reason = tuple(min(depth, candidate.ceiling) for candidate in candidates), "fixed"
        else:
            decision = controller.choose(candidates, prefill)
            depths, reason = decision.computed_depths, decision.reason
        passes = _passes(candidates, depths)
        tokens = len(decodes) + sum(depths) + prefill
        draft_seconds = sum(map(world.draft, passes)) * math.exp(rng.gauss(0, world.noise))
        target_seconds = world.target(tokens) * math.exp(rng.gauss(0, world.noise))
        if controller is not None:
            controller.costs.observe_target(tokens, target_seconds, sequences=len(decodes))
            controller.costs.observe_draft(passes, draft_seconds)
        for sequence, k in zip(decodes, depths, strict=True):
            _verify(sequence, k, world.acceptance(outcome.steps), rng, controller)
        for sequence in admitted:
            sequence.emitted = 1
        running = _unfinished(running + admitted, controller)
        outcome.seconds += draft_seconds + target_seconds
        outcome.steps += 1
        outcome.reasons[reason] += 1
        outcome.drafted.append(any(depths))
        if reason == "explore":
            outcome.explored_seconds += draft_seconds + world.target(tokens) - world.target(tokens - sum(depths))
    return outcome


def _candidate(sequence: _Running, controller: DepthController | None) -> DraftCandidate:
    remaining = sequence.job.limit - sequence.emitted
    return DraftCandidate(
        ceiling=max(0, min(MAX_DEPTH, remaining - 1)),
        acceptance=controller.acceptance_of(sequence.name) if controller else None,
        catch_up_tokens=max(0, sequence.job.prompt + sequence.emitted - 1 - sequence.drafted),
        remaining_tokens=remaining,
    )


def _passes(candidates: list[DraftCandidate], depths: tuple[int, ...]) -> list[int]:
    """Tokens of each pass of the draft model."""
    if not any(depths):
        return []
    first = sum(1 + candidate.catch_up_tokens for candidate, depth in zip(candidates, depths, strict=True) if depth)
    return [first, *(sum(depth > position for depth in depths) for position in range(1, max(depths)))]


def _verify(
    sequence: _Running, depth: int, acceptance: float, rng: random.Random, controller: DepthController | None
) -> None:
    accepted = 0
    while accepted < depth and rng.random() < acceptance:
        accepted += 1
    if depth:
        sequence.drafted = sequence.job.prompt + sequence.emitted + min(accepted, depth - 1)
        if controller is not None:
            controller.observe_acceptance(sequence.name, depth, accepted)
    sequence.emitted += accepted + 1


def _unfinished(running: list[_Running], controller: DepthController | None) -> list[_Running]:
    for sequence in running:
        if sequence.emitted >= sequence.job.output and controller is not None:
            controller.forget(sequence.name)
            controller.observe_output(sequence.job.output)
    return [sequence for sequence in running if sequence.emitted < sequence.job.output]
