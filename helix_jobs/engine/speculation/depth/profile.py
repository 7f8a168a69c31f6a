"""Measures what steps cost on this machine when the engine starts, and keeps it in a file for the next start."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Final

import torch

from helix_jobs.engine.attention.step_layout import TokenSlice
from helix_jobs.engine.devices.kept_file import KeptFile
from helix_jobs.engine.speculation.depth.costs import CostProfile

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from helix_jobs.engine.model.runner import ModelRunner

logger = logging.getLogger(__name__)

# Tokens in the cache of each measured sequence: about the middle of a short job.
_CONTEXT: Final = 128
# Depths are chosen for decoding steps; prompt chunks matter only where they share such a step.
_TARGET_TOKENS: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512)
_DRAFT_TOKENS: Final = (1, 2, 3, 4, 6, 8, 12, 16, 32, 64, 128, 512)
# Measured whatever the batch size: a draft model catches up on whole prompts, and target steps carry prompt chunks.
_LARGEST: Final = 512
_REPEATS: Final = 2
# Passes measured together where a step waits once for all of them.
_CHAINED: Final = 4
# A point that takes longer than this is measured once.
_LONGEST_SECONDS: Final = 1.5


def measure_costs(
    target: ModelRunner, draft: ModelRunner | None, *, max_batch_size: int, max_depth: int
) -> CostProfile:
    """Time passes of target and draft over made-up decodes, before any request arrives.

    Writes blocks of the caches but allocates none. Token counts above the batch size are measured with several tokens
    a sequence, as in steps that draft.

    Args:
        target: The target.
        draft: The draft model, if there is one.
        max_batch_size: Most sequences in a step.
        max_depth: Most draft tokens a sequence.
    """
    started = time.perf_counter()
    most = max_batch_size * (1 + max_depth)
    profile = CostProfile.from_measurements(
        _measure(target, [n for n in _TARGET_TOKENS if n <= most or n == _LARGEST], max_batch_size),
        None
        if draft is None
        else _measure(
            draft,
            [n for n in _DRAFT_TOKENS if n <= most or n == _LARGEST],
            max_batch_size,
            num_passes=_CHAINED if draft.has_dear_waits else 1,
        ),
    )
    logger.info("measured what steps cost in %.1f s", time.perf_counter() - started)
    return profile


@torch.no_grad()
def _measure(
    runner: ModelRunner, counts: Sequence[int], max_batch_size: int, *, num_passes: int = 1
) -> dict[int, float]:
    """Token count -> seconds of one pass, timed over ``num_passes`` passes with one wait."""
    seconds: dict[int, float] = {}
    block_size, num_blocks = runner.cache.block_size, runner.cache.num_blocks
    for count in counts:
        num_sequences = min(count, max_batch_size, num_blocks)
        if num_sequences * _blocks_written(count, num_sequences, block_size) > num_blocks:
            break
        # Not measured: the first run of a shape includes loading and compiling, which later steps do not pay.
        _run(runner, count, num_sequences, num_passes)
        times: list[float] = []
        while len(times) < _REPEATS and max(times, default=0.0) <= _LONGEST_SECONDS:
            started = time.perf_counter()
            _run(runner, count, num_sequences, num_passes)
            times.append((time.perf_counter() - started) / num_passes)
        seconds[count] = max(1e-6, min(times))
        if seconds[count] > _LONGEST_SECONDS:
            break
    return seconds


def _blocks_written(num_tokens: int, num_sequences: int, block_size: int) -> int:
    """Blocks that each sequence needs for its part of the tokens."""
    return -(-num_tokens // (num_sequences * block_size))


def _run(runner: ModelRunner, num_tokens: int, num_sequences: int, num_passes: int) -> None:
    """Greedy passes over the same ``num_tokens`` tokens of ``num_sequences`` sequences."""
    block_size, num_blocks = runner.cache.block_size, runner.cache.num_blocks
    each = -(-num_tokens // num_sequences)
    own = _blocks_written(num_tokens, num_sequences, block_size)
    # Contexts lie behind the written blocks; sequences share context blocks if there are too few.
    first_context = num_sequences * own
    num_context = min(_CONTEXT // block_size, num_blocks - first_context)
    slices: list[TokenSlice] = []
    rest = num_tokens
    while rest > 0:
        index = len(slices)
        context = [
            first_context + (index * num_context + place) % (num_blocks - first_context) for place in range(num_context)
        ]
        blocks = [*context, *range(index * own, (index + 1) * own)]
        # The numbers do not matter: layers of all sections may read and write the same blocks.
        further = [blocks] * (len(runner.cache.sections.windows) - 1)
        slices.append(TokenSlice(min(each, rest), num_context * block_size, blocks, further=further))
        rest -= slices[-1].num_tokens
    plan = runner.plan(slices)
    planned = runner.prepare(plan, [[0] * part.num_tokens for part in slices], range(plan.num_tokens))
    found = []
    for ready in runner.upload([planned] * num_passes):
        logits = runner.run(ready)
        assert logits is not None, "every row was asked for"
        found.append(logits.argmax(dim=-1))
    found[-1].cpu()  # the barrier of asynchronous devices


class CostProfileFile:
    """The file with the profile of one device, pair of models, dtype, torch release and number of threads.

    Args:
        folder: Holds a file for each identity.
        identity: The names of these.
    """

    def __init__(self, folder: Path, identity: dict[str, str]) -> None:
        self._identity = identity
        self._file = KeptFile(folder, "costs", identity)

    def read(self) -> CostProfile | None:
        """The kept profile; None when it is missing or unusable."""
        data = self._file.read()
        return None if data is None else CostProfile.from_dict(data, self._identity)

    def write(self, profile: CostProfile) -> None:
        """Keep a profile. If it cannot be written, the next start measures again."""
        self._file.write(profile.to_dict(self._identity))
