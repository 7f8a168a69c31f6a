"""Scheduler: which sequences take part in the next step, and with how many tokens. No torch."""

from __future__ import annotations

import logging
import time
from collections import deque
from itertools import islice, takewhile
from typing import TYPE_CHECKING, Final

from helix_jobs.engine.request import FinishReason, RequestState
from helix_jobs.engine.schedule import precedence
from helix_jobs.engine.schedule.admission import LOOK_AHEAD, Candidate, choose
from helix_jobs.engine.schedule.lowered_limit import BackOff
from helix_jobs.engine.schedule.room import find_room
from helix_jobs.engine.schedule.step_plan import Budget, Budgets, Decode, Prefill, Schedule
from helix_jobs.errors import OutOfMemoryError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from collections.abc import Sequence as SequenceOf

    from helix_jobs.engine.config import EngineConfig
    from helix_jobs.engine.schedule.block_pool import BlockPool
    from helix_jobs.engine.schedule.sequence import Sequence

logger = logging.getLogger(__name__)

# Fewer prompt tokens a step than this save too little memory to matter.
_FEWEST_PROMPT_TOKENS: Final = 64


class Scheduler:
    """Highest priority first, then first come, first served within the bounds of ``admission``; continuous batching.

    Urgent sequences that wait are admitted before the step is planned, and bulk ones make room for them, within the
    bounds of ``precedence``. Then running sequences are planned, those of the highest priority first, and of these the
    oldest. Each gets the blocks for its tokens before the step, if need be by preempting the last of this order: the
    youngest of the lowest priority. The remaining batch slots and token budget admit waiting sequences, which begin
    with the cached blocks of their prefix. The depth that blocks are allocated for is never trimmed to fit the
    batch: it depends on the sequence alone, so that its random numbers are used the same way in any batch.

    Args:
        config: Batch limits and speculation.
        pool: The blocks.
        scored_rows: Rows of logits for prompts' log probabilities in a step at most; None: as many as prompt tokens.

    Attributes:
        waiting: Queue of sequences without blocks, highest priority first.
        running: Sequences that take part in steps, highest priority first, then oldest first.
        cached_prompt_tokens: Counted prompt tokens shared instead of computed at first admissions, in total. What a
            request's further choices or options share of its own prompt does not count.
        preemptions: How often a running sequence lost its blocks and was queued again, in total.
    """

    def __init__(self, config: EngineConfig, pool: BlockPool, scored_rows: int | None = None) -> None:
        # Present limits of a step: both shrink after failed steps and grow back as steps pass.
        self._prompt_tokens = BackOff(config.token_budget, minimum=_FEWEST_PROMPT_TOKENS)
        self._slots = BackOff(config.max_batch_size)
        self._scored_rows = config.token_budget if scored_rows is None else scored_rows
        self._max_batch_size = config.max_batch_size
        self._urgent_slots = config.slots_for_urgent
        self._depth = config.speculation.ceiling
        self._pool = pool
        self._some_waiting_ended = False
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.cached_prompt_tokens = 0
        self.preemptions = 0

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence. If it has already ended, ``drop_finished`` returns it."""
        precedence.enqueue(self.waiting, sequence)
        self._some_waiting_ended |= sequence.state is RequestState.FINISHED

    def abort(self, sequence: Sequence) -> None:
        """End a waiting or running sequence with its output so far; one that has ended stays as it is."""
        if sequence.state is RequestState.FINISHED:
            return
        self._some_waiting_ended |= sequence.state is RequestState.WAITING
        sequence.finish(FinishReason.ABORTED)

    def has_unfinished(self) -> bool:
        """Whether any sequence waits or runs."""
        return bool(self.waiting or self.running)

    @property
    def batch_limit(self) -> int:
        """Sequences that may run at present."""
        return self._slots.value

    @property
    def active(self) -> list[Sequence]:
        """Running sequences that have not ended, in their order."""
        return [sequence for sequence in self.running if sequence.state is not RequestState.FINISHED]

    def schedule(self) -> Schedule:
        """Choose the next step and allocate its blocks. Sequences that can never fit fail here, each alone."""
        decodes: list[Decode] = []
        prefills: list[Prefill] = []
        for sequence in self.running:
            sequence.settle()
        for sequence in self.active[::-1]:
            if sequence.has_outgrown:
                self.preempt(sequence)  # its tokens are computed again, by other frequencies
        urgent_goes_first = self._admit_urgent()
        budgets = Budgets.of(self._prompt_tokens.value, self._scored_rows, is_shared=self._share_prompt_tokens())
        index = 0
        while index < len(self.running):
            sequence = self.running[index]
            budget = budgets.for_(sequence)
            planned = self._plan(sequence, budget)
            if planned is None or sequence.state is RequestState.FINISHED:
                index += 1
                continue
            if not self._make_room(planned):
                continue  # preempted or failed: ``running`` has changed, so try this index again
            if isinstance(planned, Prefill):
                prefills.append(planned)
                budget.spend(planned)
            else:
                decodes.append(planned)
            index += 1
        if not urgent_goes_first:
            self._admit(decodes, prefills, budgets.bulk)
        return Schedule(tuple(decodes), tuple(prefills))

    def preempt_youngest(self, count: int) -> None:
        """Preempt the last ``count`` running sequences; they keep their order in the queue."""
        for sequence in self.active[::-1][:count]:
            self.preempt(sequence)

    def drop_finished(self) -> list[Sequence]:
        """Remove ended sequences, free their blocks and return them."""
        finished = [s for s in self.running if s.state is RequestState.FINISHED]
        if finished:
            self.running = [s for s in self.running if s.state is not RequestState.FINISHED]
        if self._some_waiting_ended:
            self._some_waiting_ended = False
            finished += [s for s in self.waiting if s.state is RequestState.FINISHED]
            self.waiting = deque(s for s in self.waiting if s.state is not RequestState.FINISHED)
        for sequence in finished:
            sequence.settle()
            sequence.reset_cache()
        return finished

    def shrink(self) -> None:
        """Halve the batch after a failed step and preempt the sequences that no longer fit."""
        num_active = len(self.active)
        self._slots.lower(num_active // 2)
        self.preempt_youngest(num_active - self.batch_limit)

    def shrink_prompts(self, schedule: Schedule) -> bool:
        """Allow the next steps half the prompt tokens of ``schedule``, which failed; False if they were few anyway."""
        num_tokens = sum(prefill.num_tokens for prefill in schedule.prefills)
        if num_tokens <= self._prompt_tokens.minimum:
            return False
        self._prompt_tokens.lower(num_tokens // 2)
        return True

    def step_passed(self) -> None:
        """Count a passed step; enough of them in a row raise the limits again, up to the configured ones."""
        self._slots.passed()
        self._prompt_tokens.passed()

    def _plan(self, sequence: Sequence, budget: Budget) -> Decode | Prefill | None:
        """What this sequence will do in the step; None if no budget is left for its prompt."""
        remaining = sequence.num_prefill_tokens
        if remaining == 0:
            return Decode(sequence, sequence.max_depth(self._depth))
        start = sequence.num_computed
        end = start + min(remaining, budget.tokens)
        scored = sequence.unscored(end)
        if len(scored) > budget.rows:
            scored = scored[: budget.rows]
            end = scored.stop
        if end <= start:
            return None
        ends_prompt = end == start + remaining and sequence.num_output_tokens == 0
        return Prefill(sequence, end - start, ends_prompt and sequence.wants_output, scored, ends_prompt)

    def _make_room(self, planned: Decode | Prefill, *, is_new: bool = False) -> bool:
        """Allocate a sequence's blocks, preempting those behind it; False if it was itself preempted or failed.

        Args:
            planned: What it will do.
            is_new: It begins in this step, behind sequences that are planned already and keep what they have.
        """
        sequence, length = planned.sequence, planned.length
        while sequence.table.missing_blocks(length) > self._pool.num_free:
            if self._reclaim():
                continue
            last = sequence if is_new else self.running[-1]
            if last is not sequence:
                self.preempt(last)
                continue
            if len(self.running) > 1:
                self.preempt(sequence)
            elif sequence.give_up_unneeded(draft_too=True):
                continue
            else:
                self._fail_too_large(sequence, length)
            return False
        _allocate(sequence, length)
        return True

    def _share_prompt_tokens(self) -> bool:
        """Whether urgent prompts and bulk ones are to be computed."""
        prompts = [one.is_urgent for one in self.running if one.num_prefill_tokens]
        return any(prompts) and (not all(prompts) or precedence.first_bulk(self.waiting) is not None)

    def _admit_urgent(self) -> bool:
        """Let urgent sequences run, in place of bulk ones if need be; whether nothing else may begin before the next.

        They are planned with the running sequences, and first. No more of them begin than the step's prompt tokens
        reach for: the others would displace bulk work for nothing.
        """
        if not self.waiting or not self.waiting[0].is_urgent:
            return False
        running = (one for one in self.running if one.is_urgent)
        computing = {prefix for one in running for prefix in one.table.unfrozen_prefixes}
        candidates = self._candidates(takewhile(lambda one: one.is_urgent, self.waiting))
        while candidates and precedence.may_displace(self.running, self.waiting, self._urgent_slots):
            if sum(one.num_prefill_tokens for one in self.running if one.is_urgent) >= self._prompt_tokens.value:
                return True
            bulk = precedence.first_bulk(self.waiting)
            chosen = choose(candidates, computing, None)
            if chosen is None:
                _defer(candidates)
                return True
            sequence = chosen.sequence
            # A free slot that is due to bulk work stays free for it.
            slots = max(0, 1 + len(self.running) + precedence.is_overdue(bulk) - self.batch_limit)
            makes_room = precedence.displaceable(self.running)
            if slots > len(makes_room):
                return False
            if self.running and not self._clear_room(sequence, makes_room, slots):
                return True
            precedence.note_overtaken([*precedence.overtaken_by(candidates, chosen), *([bulk] if bulk else ())])
            candidates.remove(chosen)
            self._start(sequence)
            self._note_admitted(sequence)
            computing.update(sequence.table.unfrozen_prefixes)
        return False

    def _admit(self, decodes: list[Decode], prefills: list[Prefill], budget: Budget) -> None:
        """Start waiting sequences while slots, budget and blocks last: urgent ones last, as they have their share."""
        if not self.waiting or len(self.running) >= self.batch_limit or budget.tokens <= 0:
            return
        if self.running and find_room(self._pool, self.running, 1) is None:
            return  # every sequence needs a block of its own, so none fits: skip the queue
        candidates = budget.affordable(self._candidates(self._bulk_first()))
        computing = {prefix for sequence in self.running for prefix in sequence.table.unfrozen_prefixes}
        while candidates and len(self.running) < self.batch_limit and budget.tokens > 0:
            chosen = choose(candidates, computing, prefills[0].sequence.num_prefill_tokens if prefills else None)
            if chosen is None:
                _defer(candidates)
                return
            sequence = chosen.sequence
            if self.running and not self._clear_room(sequence):
                return
            precedence.note_overtaken(precedence.overtaken_by(candidates, chosen))
            candidates.remove(chosen)
            planned = self._begin(sequence, budget)
            if planned is None:
                continue
            computing.update(sequence.table.unfrozen_prefixes)
            if isinstance(planned, Prefill):
                prefills.append(planned)
                budget.spend(planned)
                candidates = budget.affordable(candidates)
            else:  # it was preempted, and everything it had computed was still cached
                decodes.append(planned)

    def _begin(self, sequence: Sequence, budget: Budget) -> Decode | Prefill | None:
        """Let a waiting sequence run behind its cached blocks; None if it failed, as it can never fit."""
        self._start(sequence)
        planned = self._plan(sequence, budget)
        assert planned is not None, "the budget is not used up"
        if not self._make_room(planned, is_new=True):
            if sequence.state is RequestState.FINISHED:
                sequence.reset_cache()  # drop_finished returns it, as it does every ended sequence
            return None
        self._note_admitted(sequence)
        return planned

    def _start(self, sequence: Sequence) -> None:
        """Move a waiting sequence to the running ones, with its cached blocks."""
        self.waiting.remove(sequence)
        precedence.join(self.running, sequence)
        # Looked up again: admissions of this step may have evicted some.
        sequence.share(sequence.num_cached_blocks())

    def _bulk_first(self) -> Iterable[Sequence]:
        """The waiting sequences in the order in which they get slots that are free."""
        if not self.waiting[0].is_urgent:
            return self.waiting
        return sorted(self.waiting, key=lambda one: one.is_urgent)

    def _candidates(self, waiting: Iterable[Sequence]) -> list[Candidate]:
        """The sequences within the look-ahead, in order."""
        candidates = []
        for sequence in islice(waiting, LOOK_AHEAD * self._max_batch_size):
            if sequence.state is RequestState.FINISHED:
                self._some_waiting_ended = True
            else:
                candidates.append(Candidate.of(sequence))
        return candidates

    def _clear_room(self, sequence: Sequence, makes_room: SequenceOf[Sequence] = (), slots: int = 0) -> bool:
        """Whether all its known tokens and its first drafts fit; otherwise it would be preempted at once.

        Running sequences give up what they must for that, and nothing if it does not fit.

        Args:
            sequence: A waiting sequence.
            makes_room: Running sequences that may be displaced for it, in this order.
            slots: How many of them must be.
        """
        num_cached = sequence.num_cached_blocks()
        depth = self._depth if sequence.may_draft else 0
        shared = frozenset(block for blocks in sequence.table.cached_blocks(num_cached) for block in blocks)
        length = len(sequence) + 1 + depth
        count = self._pool.most_blocks(length) - self._pool.num_held(sequence.table.cached_at_most(num_cached, length))
        room = find_room(self._pool, self.running, count, shared, displaceable=makes_room, slots=slots)
        if room is None:
            return False
        for giver in room.givers:
            giver.give_up_unneeded()
        for displaced in room.displaced:
            displaced.num_displaced += 1
            self.preempt(displaced)
        return True

    def _reclaim(self) -> bool:
        """Let the youngest running sequence that can give up blocks which only others may want; False if none can.

        Trade-off: a draft model that is far behind then drafts no more for the sequence, and the beginning of a prompt
        that is still computed is not shared. The sequence itself goes on, where a preemption would compute it again.
        """
        return self._pool.frees and any(sequence.give_up_unneeded() for sequence in reversed(self.running))

    def _note_admitted(self, sequence: Sequence) -> None:
        sequence.state = RequestState.RUNNING
        if sequence.admitted_at is None:
            sequence.admitted_at = time.monotonic()
            sequence.cached_prompt_tokens = sequence.num_computed
            self.cached_prompt_tokens += min(sequence.num_computed, sequence.num_counted_prompt_tokens)

    def set_aside(self, sequence: Sequence, *, discard: bool = False) -> None:
        """Remove a running sequence and free its blocks; ``add`` brings it back.

        Args:
            sequence: The sequence.
            discard: Do not trust its blocks: no sequence may share them, itself included.
        """
        self.running.remove(sequence)
        sequence.reset_cache(discard=discard)
        sequence.state = RequestState.WAITING

    def preempt(self, sequence: Sequence, *, discard: bool = False) -> None:
        """Free a running sequence's blocks and send it back to the head of its priority's queue, to be recomputed.

        Blocks still in the prefix cache on its return are not recomputed. ``discard``: see ``set_aside``.
        """
        self.set_aside(sequence, discard=discard)
        precedence.put_back(self.waiting, sequence)
        self.preemptions += 1
        logger.debug("preempted request %s at %d tokens", sequence.request_id, len(sequence))

    def _fail_too_large(self, sequence: Sequence, length: int) -> None:
        sequence.fail(
            OutOfMemoryError(
                f"the request reached {length} tokens and the KV cache holds {self._pool.capacity}; "
                "raise HELIX_KV_CACHE_MB or lower max_tokens"
            )
        )


def _allocate(sequence: Sequence, length: int) -> None:
    """Make room for ``length`` tokens, the shared ones included."""
    table = sequence.table
    assert sequence.num_computed >= table.num_frozen * table.block_size, "the target never writes a shared block"
    table.grow(length)


def _defer(candidates: Iterable[Candidate]) -> None:
    for candidate in candidates:
        candidate.sequence.num_deferred += 1
