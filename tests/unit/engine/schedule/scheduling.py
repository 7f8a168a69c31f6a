"""A scheduler without an engine: sequences to queue, and what a step would do to them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from helix_jobs.engine.cache_sections import CacheSections
from helix_jobs.engine.config import EngineConfig, SpeculationConfig
from helix_jobs.engine.request import EncodedRequest
from helix_jobs.engine.sampling_params import SamplingParams
from helix_jobs.engine.schedule.block_pool import BlockPool
from helix_jobs.engine.schedule.block_table import BlockTable
from helix_jobs.engine.schedule.scheduler import Scheduler
from helix_jobs.engine.schedule.sequence import Sequence

if TYPE_CHECKING:
    from collections.abc import Iterable

    from helix_jobs.engine.schedule.step_plan import Schedule


def make(num_blocks=100, block_size=4, depth=2, windows=(None,), *, has_draft=True, **config):
    """A scheduler and its pool; every section of ``windows`` has a layer of the target and, perhaps, of the draft."""
    engine_config = EngineConfig(speculation=SpeculationConfig(depth=depth, adaptive=False), **config)
    layers = tuple(range(len(windows)))
    sections = CacheSections(windows=windows, target=layers, draft=layers if has_draft else ())
    step_tokens = max(engine_config.token_budget, depth + 1)
    pool = BlockPool(num_blocks, block_size, sections, step_tokens=step_tokens)
    return Scheduler(engine_config, pool), pool


def sequence_of(
    pool: BlockPool, name: str, prompt: Iterable[int], max_tokens: int = 8, *, priority: int = 0
) -> Sequence:
    params = SamplingParams(max_tokens=max_tokens)
    made = EncodedRequest(
        request_id=name, prompt_token_ids=tuple(prompt), seed=0, sampling_params=params, priority=priority
    )
    return Sequence(made, BlockTable(pool), frozenset(), 10_000)


def add(scheduler, pool, name, num_prompt, *, max_tokens=8, shared=0, priority=0):
    """Queue a prompt of its own but for the first ``shared`` tokens, which all have in common."""
    own = sum(map(ord, name)) * 1000
    prompt = [*range(1, shared + 1), *range(own, own + num_prompt - shared)]
    sequence = sequence_of(pool, name, prompt, max_tokens, priority=priority)
    scheduler.add(sequence)
    return sequence


def carry_out(schedule: Schedule, accepted: int = 1) -> None:
    """Do to the sequences what a step with this many emitted tokens would do."""
    for prefill in schedule.prefills:
        prefill.sequence.num_computed += prefill.num_tokens
        if prefill.emits:
            emit(prefill.sequence, 1)
    for decode in schedule.decodes:
        emit(decode.sequence, min(accepted, decode.depth + 1))


def emit(sequence: Sequence, count: int) -> None:
    sequence.commit([7] * count, 0.0)
    sequence.num_computed = len(sequence) - 1


def admitted(schedule: Schedule) -> list[str]:
    return [prefill.sequence.request_id for prefill in schedule.prefills]
