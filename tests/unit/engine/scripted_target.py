"""A target and a draft without torch: what they "compute" from the cache is a checksum of the tokens they find there.

A block shared wrongly, overwritten, freed or evicted too early therefore gives a wrong token, as it would in a real
model.
"""

from __future__ import annotations

import random
import zlib
from typing import TYPE_CHECKING

from helix_jobs.engine.request import RequestState
from helix_jobs.engine.schedule.block_table import FREED
from helix_jobs.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Collection
    from collections.abc import Sequence as SequenceOf

    from helix_jobs.engine.schedule.block_pool import BlockPool
    from helix_jobs.engine.schedule.scheduler import Scheduler
    from helix_jobs.engine.schedule.sequence import Sequence
    from helix_jobs.engine.schedule.step_plan import Decode, Prefill, Schedule

VOCAB_SIZE = 40
STOP = 0
GARBAGE = -1  # what a failed step leaves
NOT_FINITE = -2


def next_token(token_ids: SequenceOf[int]) -> int:
    """The target's greedy choice after these tokens."""
    return zlib.crc32(bytes(token_ids)) % VOCAB_SIZE


def sequential(prompt: SequenceOf[int], max_tokens: int) -> list[int]:
    """The output of a request that is alone in the world."""
    token_ids = list(prompt)
    while len(token_ids) < len(prompt) + max_tokens:
        token = next_token(token_ids)
        if token == STOP:
            break
        token_ids.append(token)
    return token_ids[len(prompt) :]


class ScriptedTarget:
    """Carries out schedules as ``SpeculativeStep`` and ``Engine`` do, over caches of plain token numbers."""

    def __init__(self, scheduler: Scheduler, pool: BlockPool, seed: int) -> None:
        self.scheduler = scheduler
        self.pool = pool
        self.rng = random.Random(seed)
        # All sections share the rows, as each block belongs to one section at a time.
        self.rows = [GARBAGE] * (pool.num_blocks * pool.block_size)
        self.draft_rows = list(self.rows)
        self.spoilt: set[str] = set()

    def run(self, schedule: Schedule, *, spoil: str | None = None) -> None:
        """One step that passes; everything ``spoil`` computes in it is not finite."""
        done = [(p.sequence, self._prefill(p, spoilt=p.sequence.request_id == spoil)) for p in schedule.prefills]
        done += [(d.sequence, self._decode(d, spoilt=d.sequence.request_id == spoil)) for d in schedule.decodes]
        self._quarantine([sequence for sequence, is_finite in done if not is_finite])

    def fail(self, schedule: Schedule) -> None:
        """One step that ends half-way, out of memory."""
        for planned in (*schedule.prefills, *schedule.decodes):
            sequence = planned.sequence
            self._write(sequence, sequence.num_computed, [GARBAGE] * (sequence.table.capacity - sequence.num_computed))
            if sequence.num_prefill_tokens == 0:  # the drafts of a step that came to nothing
                self._draft(sequence, [GARBAGE] * max(0, sequence.table.capacity - len(sequence)))
        if len(self.scheduler.active) > 1:
            self.scheduler.shrink()
        else:
            (sequence,) = self.scheduler.active
            self.scheduler.set_aside(sequence)
            self.scheduler.add(sequence)

    def _prefill(self, prefill: Prefill, *, spoilt: bool) -> bool:
        sequence, end = prefill.sequence, prefill.sequence.num_computed + prefill.num_tokens
        if self.rng.random() < 0.5:  # the draft keeps up, or it does not
            self._draft(sequence, [], end)
        self._compute(sequence, sequence.token_ids[sequence.num_computed : end], spoilt=spoilt)
        sequence.num_computed = end
        return not prefill.emits or self._emit(sequence, [])

    def _decode(self, decode: Decode, *, spoilt: bool) -> bool:
        sequence = decode.sequence
        assert sequence.num_computed == len(sequence) - 1, "a decoding sequence misses exactly its last token"
        drafts = self._drafts(sequence, self.rng.randint(0, decode.depth))
        if self.rng.random() < 0.5:  # else they come from a lookup, and the draft's cache stays as it is
            self._draft(sequence, drafts)
        self._compute(sequence, [sequence.token_ids[-1], *drafts], spoilt=spoilt)
        return self._emit(sequence, drafts)

    def _drafts(self, sequence: Sequence, depth: int) -> list[int]:
        """Some right, some not."""
        token_ids = list(sequence.token_ids)
        for _ in range(depth):
            right = self.rng.random() < 0.7
            token_ids.append(next_token(token_ids) if right else self.rng.randrange(VOCAB_SIZE))
        return token_ids[len(sequence) :]

    def _emit(self, sequence: Sequence, drafts: SequenceOf[int]) -> bool:
        """Verify from what the cache holds; False if that is not finite."""
        length = len(sequence)
        tokens = []
        for position in range(len(drafts) + 1):
            known = [*sequence.token_ids, *drafts[:position]]
            keys = self._seen(self.rows, sequence, known, length + position - 1)
            if NOT_FINITE in keys:
                assert sequence.request_id in self.spoilt, "values that are not finite reached somebody else"
                return False
            tokens.append(next_token([key % 256 for key in keys]))
            if position < len(drafts) and tokens[-1] != drafts[position]:
                break
        sequence.commit(tokens, 0.0)
        sequence.num_computed = len(sequence) - 1
        sequence.was_recomputed = False
        return True

    def _compute(self, sequence: Sequence, token_ids: SequenceOf[int], *, spoilt: bool) -> None:
        if spoilt:
            self.spoilt.add(sequence.request_id)
        start = sequence.num_computed
        for position, token in enumerate(token_ids, start):
            self._write(sequence, position, [NOT_FINITE if spoilt else token])
            known = [*sequence.token_ids[:start], *token_ids]
            if NOT_FINITE in self._seen(self.rows, sequence, known, position):
                self._write(sequence, position, [NOT_FINITE])  # what a token sees reaches its keys in the next layer

    def _write(self, sequence: Sequence, start: int, token_ids: SequenceOf[int]) -> None:
        size = self.pool.block_size
        for position, token in enumerate(token_ids, start):
            for blocks in sequence.table.sections:
                block = blocks[position // size]
                assert self.pool.is_private(block), "the target writes where somebody else may read"
                self.rows[block * size + position % size] = token

    def _draft(self, sequence: Sequence, drafts: SequenceOf[int], end: int | None = None) -> None:
        """The draft's passes: catch up to ``end`` and beyond it compute all drafts but the last."""
        if sequence.is_draft_cut:
            return
        size = self.pool.block_size
        start = sequence.num_draft_computed
        known = sequence.token_ids[:end]
        for position, token in enumerate([*known, *drafts[:-1]][start:], start):
            for section in {*self.pool.sections.draft}:
                self.draft_rows[sequence.table.sections[section][position // size] * size + position % size] = token
            so_far = [*known, *drafts[:-1]][: position + 1]
            held = self._seen(self.draft_rows, sequence, so_far, position, {*self.pool.sections.draft})
            assert held == so_far, "the draft's cache holds what it is said to hold"
            sequence.num_draft_computed = position + 1

    def _seen(
        self,
        rows: SequenceOf[int],
        sequence: Sequence,
        known: SequenceOf[int],
        position: int,
        sections: Collection[int] | None = None,
    ) -> list[int]:
        """``known`` up to the token at ``position``; where that token sees keys of some section, what these hold."""
        size = self.pool.block_size
        seen = list(known[: position + 1])
        for section, window in enumerate(self.pool.sections.windows):
            if sections is not None and section not in sections:
                continue
            for i in range(0 if window is None else max(0, position + 1 - window), position + 1):
                block = sequence.table.sections[section][i // size]
                assert block != FREED, "what is seen is held"
                if rows[block * size + i % size] != known[i]:
                    seen[i] = rows[block * size + i % size]
        return seen

    def _quarantine(self, sequences: SequenceOf[Sequence]) -> None:
        for sequence in sequences:
            if sequence.was_recomputed:
                sequence.fail(EngineError("not finite"))
                sequence.reset_cache(discard=True)
            else:
                sequence.was_recomputed = True
                self.scheduler.preempt(sequence, discard=True)
                assert sequence.state is RequestState.WAITING
        if sequences:
            size = self.pool.block_size
            for block in self.pool.used_free_blocks():
                self.rows[block * size : (block + 1) * size] = [GARBAGE] * size
            assert self.clean(), "all that is not finite is still somebody's, and cleared once it is not"

    def clean(self) -> bool:
        """Whether no block of the prefix cache holds what is not finite."""
        size = self.pool.block_size
        cached = (block for block in range(self.pool.num_blocks) if block in self.pool.prefix_cache)
        return all(NOT_FINITE not in self.rows[block * size : (block + 1) * size] for block in cached)
