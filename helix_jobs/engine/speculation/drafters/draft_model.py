"""DraftModelDrafter: a small model with its own paged cache runs ahead of the target."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch

from helix_jobs.engine.attention.step_layout import TokenSlice
from helix_jobs.engine.devices.shape_sizes import SMALL_STEP
from helix_jobs.engine.sampling.logits_processors import shape_logits
from helix_jobs.engine.sampling.random_numbers import Purpose, uniform
from helix_jobs.engine.sampling.sampler import argmax_of_rows, processed_probs, sample
from helix_jobs.engine.speculation.drafters.awaited_drafts import AwaitedDrafts
from helix_jobs.engine.speculation.drafters.protocol import NOTHING_COMPUTED, Draft, Proposal

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Sequence as SequenceOf

    from helix_jobs.engine.model.runner import ModelRunner, Pass, PlannedPass
    from helix_jobs.engine.schedule.sequence import Sequence
    from helix_jobs.engine.speculation.turn import Turn
    from helix_jobs.engine.state_span import StateSpan

# A logit with which no token is ever chosen.
_IMPOSSIBLE: Final = -1e30


class Drafting:
    """A turn that drafts behind what its grammar forces, and its draft so far."""

    def __init__(self, turn: Turn) -> None:
        self.turn = turn
        self.sequence = turn.sequence
        self.depth = turn.depth
        # Tokens before the first one to draft.
        self.num_known = len(turn.sequence) + len(turn.forced)
        self.is_greedy = turn.sequence.takes_argmax
        self.token_ids: list[int] = []
        # One ``[vocab_size]`` distribution for each drafted position; sampled sequences only.
        self.probs: list[torch.Tensor] = []

    def output_ids(self) -> list[int]:
        """The output with everything that is drafted so far."""
        return [*self.sequence.output_token_ids, *self.turn.forced, *self.token_ids]


@dataclass(frozen=True, slots=True)
class PlannedDrafts:
    """All draft passes of one step, planned before the first of them runs.

    Attributes:
        drafting: The turns that draft, in the given order.
        batches: For each drafted position, the turns that draft it, in the order of their tokens in the pass.
        ends: All sequences that the first pass catches up on, each with the end of its slice.
        passes: One for each drafted position. The first also catches up, and may do only that.
    """

    drafting: tuple[Drafting, ...]
    batches: tuple[list[Drafting], ...]
    ends: tuple[tuple[Sequence, int], ...]
    passes: tuple[PlannedPass, ...]

    def note_filled(self) -> None:
        """Note what the draft's cache holds after the first pass. Only accepted tokens are shared with others."""
        for sequence, end in self.ends:
            sequence.note_draft_computed(min(end, len(sequence)))
            sequence.num_draft_computed = max(end, sequence.num_draft_computed)


class DraftModelDrafter:
    """Drafts K tokens in K ragged passes of the draft model.

    The first pass also catches up: it computes all tokens of a sequence that the draft's cache lacks, from a whole
    prompt to the one token it lacks after the target accepted its whole draft. It also computes what the grammar
    forces. The draft's cache uses the target's block tables (see ``BlockPool``).

    Args:
        runner: The draft model.
        vocab_size: The target's vocabulary size. Draft logits are cut to it or, for sampling, padded to it.
    """

    name: Final = "model"

    def __init__(self, runner: ModelRunner, vocab_size: int) -> None:
        self._runner = runner
        self._vocab_size = vocab_size

    def propose(self, turns: SequenceOf[Turn], prefills: SequenceOf[Turn] = ()) -> Proposal:
        """Draft ``depth`` tokens for each turn, behind the forced ones.

        All passes are planned first and copied to the device together.

        Args:
            turns: Decodes with a depth above 0.
            prefills: Prompt chunks to compute as well. A sequence left out here is caught up on when it drafts.
        """
        if self._runner.has_dear_waits:
            return self._draft_on_device(turns, prefills)
        started = time.perf_counter()
        # Greedy sequences first: the device chooses their tokens, the other rows' logits are copied to the host.
        planned = self._plan(turns, prefills, rank=lambda one: not one.is_greedy)
        if planned is None:
            return NOTHING_COMPUTED
        first, *following = self._runner.upload(planned.passes)
        logits = self._runner.run(first)
        planned.note_filled()
        if logits is not None:
            self._extend(planned.batches, following, logits)
        draft_probs = _hand_over(planned.drafting)
        passes = tuple(one.plan.num_tokens for one in planned.passes)
        return Proposal(draft_probs, passes, time.perf_counter() - started, has_waited=bool(turns))

    def _draft_on_device(self, turns: SequenceOf[Turn], prefills: SequenceOf[Turn]) -> Proposal:
        """Plan the draft passes of a step that waits only once; they run with its target pass."""
        # All passes have one size, so that shapes repeat whatever the depths; smaller passes would not be faster.
        planned = self._plan(turns, prefills, rank=lambda one: -one.depth, least_tokens=min(len(turns), SMALL_STEP))
        if planned is None:
            return NOTHING_COMPUTED
        for turn in turns:
            turn.draft = Draft((), num_awaited=turn.depth)
        return Proposal(awaited=AwaitedDrafts(self._runner, planned, self._vocab_size))

    def missing_tokens(self, sequence: Sequence) -> int:
        """Tokens before a sequence's last one that the draft's cache does not hold yet."""
        return max(0, len(sequence) - 1 - sequence.num_draft_computed)

    def observe(self, sequence: Sequence, num_drafted: int, num_accepted: int) -> None:
        """Do nothing: a model does not learn. The depth controller tracks its acceptance."""

    def forget(self, sequence: Sequence) -> None:
        """Do nothing: the model keeps nothing of a sequence outside its cache blocks."""

    def clear(self, blocks: SequenceOf[int]) -> None:
        """Zero blocks of the draft's cache."""
        self._runner.cache.clear(blocks)

    def _plan(
        self,
        turns: SequenceOf[Turn],
        prefills: SequenceOf[Turn],
        *,
        rank: Callable[[Drafting], int],
        least_tokens: int = 0,
    ) -> PlannedDrafts | None:
        """Plan every pass; ``rank`` orders the tokens of each pass. None if there is nothing to compute."""
        for sequence in (turn.sequence for turn in turns):
            # Rows past here are rejected drafts of the last step, or left by a step that failed half-way.
            sequence.num_draft_computed = min(sequence.num_draft_computed, len(sequence) - 1)
        drafting = [Drafting(turn) for turn in turns]
        ranked = sorted(drafting, key=rank)
        batches = [
            [one for one in ranked if one.depth > position]
            for position in range(max((one.depth for one in drafting), default=0))
        ]
        ends = [(one.sequence, one.num_known) for one in ranked]
        ends += [(prefill.sequence, prefill.end) for prefill in prefills]
        ends = [(sequence, end) for sequence, end in ends if end > sequence.num_draft_computed]
        if not ends:
            return None
        passes = [self._plan_first(ends, ranked)]
        for position, (previous, batch) in enumerate(itertools.pairwise(batches)):
            passes.append(self._plan_next(previous, batch, position, least_tokens))
        return PlannedDrafts(tuple(drafting), tuple(batches), tuple(ends), tuple(passes))

    def _plan_first(self, ends: SequenceOf[tuple[Sequence, int]], ranked: list[Drafting]) -> PlannedPass:
        """Plan the pass that computes all missing tokens. The first sequences are those that draft, as ``ranked``."""
        starts = _disjoint_starts(ends)
        slices = [
            TokenSlice(
                end - start, start, blocks, _begin_states(sequence, start, end), further, is_long=sequence.table.is_long
            )
            for (sequence, end), start in zip(ends, starts, strict=True)
            for blocks, *further in (sequence.table.sections,)
        ]
        plan = self._runner.plan(slices)
        forced = [*(one.turn.forced for one in ranked), *[()] * (len(ends) - len(ranked))]
        tokens = [
            self._readable([*sequence.token_ids[start:end], *behind])
            for (sequence, end), start, behind in zip(ends, starts, forced, strict=True)
        ]
        # A decoding sequence always misses at least its last token, so the first slices are exactly the drafting ones.
        rows = [plan.offsets[index] + slices[index].num_tokens - 1 for index in range(len(ranked))]
        return self._runner.prepare(plan, tokens, rows)

    def _plan_next(
        self, previous: list[Drafting], batch: list[Drafting], position: int, least_tokens: int
    ) -> PlannedPass:
        """Plan the pass that reads the ``position``-th draft tokens, which the pass before leaves on the device."""
        slices = [
            TokenSlice(
                1,
                one.num_known + position,
                blocks,
                _states_behind(one.sequence),
                further,
                is_long=one.sequence.table.is_long,
            )
            for one in batch
            for blocks, *further in (one.sequence.table.sections,)
        ]
        places = {id(one): place for place, one in enumerate(previous)}
        plan = self._runner.plan(slices, least_tokens)
        return self._runner.continue_pass(plan, [places[id(one)] for one in batch], least_tokens)

    def _extend(self, batches: SequenceOf[list[Drafting]], following: list[Pass], logits: torch.Tensor) -> None:
        """Draft position by position; greedy sequences' tokens stay on the device until the last one."""
        found: list[torch.Tensor] = []
        for position, batch in enumerate(batches):
            greedy, others = self._choose(batch, position, logits)
            if greedy is not None:
                found.append(greedy)
            if position == len(following):
                break
            parts = [] if greedy is None else [greedy]
            if others:
                parts.append(torch.tensor(others, dtype=torch.int64).to(logits.device))
            made = self._runner.run(following[position], parts[0] if len(parts) == 1 else torch.cat(parts))
            assert made is not None, "every row was asked for"
            logits = made
            for one in batches[position + 1]:
                one.sequence.num_draft_computed = one.num_known + position + 1
        if not found:
            return
        counts = [len(tokens) for tokens in found]
        # zip stops early: other sequences may be deeper than the greedy ones, and padding follows the tokens.
        for batch, ids in zip(batches, torch.cat(found).cpu().split(counts), strict=False):
            for one, token in zip(batch, ids.tolist(), strict=False):
                if one.is_greedy:
                    one.token_ids.append(token)

    def _choose(
        self, batch: list[Drafting], position: int, logits: torch.Tensor
    ) -> tuple[torch.Tensor | None, list[int]]:
        """Each sequence's next token: greedy ones on the device, perhaps padded, and the others on the host."""
        num_greedy = sum(one.is_greedy for one in batch)
        # Cut ids that the target's vocabulary lacks; ids that the draft's lacks can never be chosen.
        logits = logits.narrow(1, 0, min(self._vocab_size, logits.shape[1]))
        if num_greedy == len(batch):
            return logits.argmax(dim=-1), []
        greedy, processed, _ = logits.split((num_greedy, len(batch) - num_greedy, len(logits) - len(batch)))
        others = self._process(batch[num_greedy:], position, processed.float().cpu())
        return (greedy.argmax(dim=-1) if num_greedy else None), others

    def _process(self, batch: list[Drafting], position: int, host: torch.Tensor) -> list[int]:
        """Choose tokens on the host, from logits shaped and processed like the target's."""
        missing = self._vocab_size - host.shape[1]
        if missing > 0:
            host = torch.cat((host, torch.full((len(host), missing), _IMPOSSIBLE)), dim=1)
        host = _without_nan(host)
        shaped = [(row, one) for row, one in enumerate(batch) if one.sequence.processors]
        for row, one in shaped:
            shape_logits(host[row], one.sequence.processors, one.output_ids())
        if shaped:
            # Processors may leave no token. The target's row has none either then, and the verdict ends before it.
            host = _without_nan(host)
        ids = argmax_of_rows(host)
        for row, one in enumerate(batch):
            grammar = one.sequence.grammar
            if grammar is not None and one.sequence.params.is_greedy:
                ids[row] = grammar.choose(ids[row], host[row], one.output_ids())
        rows = [row for row, one in enumerate(batch) if not one.sequence.params.is_greedy]
        if rows:
            sampled = [batch[row] for row in rows]
            probs = processed_probs(host[rows], [one.sequence.params for one in sampled])
            numbers = [uniform(one.sequence.request.seed, one.num_known + position, Purpose.DRAFT) for one in sampled]
            for place, (row, token) in enumerate(zip(rows, sample(probs, numbers), strict=True)):
                ids[row] = token
                batch[row].probs.append(probs[place])
        for one, token in zip(batch, ids, strict=True):
            one.token_ids.append(token)
        return ids

    def _readable(self, token_ids: SequenceOf[int]) -> SequenceOf[int]:
        """Replace ids for which the draft has no embedding (in practice, padding rows of the target)."""
        limit = self._runner.num_embeddings
        if limit >= self._vocab_size:
            return token_ids
        return [token_id if token_id < limit else 0 for token_id in token_ids]


def _hand_over(drafting: SequenceOf[Drafting]) -> torch.Tensor | None:
    """Give each turn its draft; return the stacked distributions of the sampled ones."""
    probs: list[torch.Tensor] = []
    for one in drafting:
        one.turn.draft = Draft(tuple(one.token_ids), len(probs) if one.probs else None)
        probs.extend(one.probs)
    return torch.stack(probs) if probs else None


def _begin_states(sequence: Sequence, start: int, end: int) -> StateSpan | None:
    """The draft's states of the pass that catches up; None without recurrent layers.

    A state is kept behind verified tokens. Forced ones are drafts until the target has verified them.
    """
    return None if sequence.draft_states is None else sequence.draft_states.begin(start, min(end, len(sequence)))


def _states_behind(sequence: Sequence) -> StateSpan | None:
    """The draft's states of a pass over one draft token; None without recurrent layers."""
    return None if sequence.draft_states is None else sequence.draft_states.behind()


def _disjoint_starts(ends: SequenceOf[tuple[Sequence, int]]) -> list[int]:
    """Where each sequence's slice of a catch-up pass begins, so that no cache row is written twice.

    Sequences may share blocks that the draft has not filled. The sequence that lacks most tokens computes them. The
    others begin behind these blocks and read them in the same pass, since each layer writes the keys and values of all
    slices before attention; a decoder that does not is given no such pass, see ``NativeInt8Decoder.serves``. Shared
    blocks end before a sequence's last token, so no slice is empty.

    A recurrent layer has to compute every token itself, so with states the shared rows are written more than once, with
    the same keys and values.

    Args:
        ends: Sequences, each with the end of its slice.
    """
    starts = [sequence.num_draft_computed for sequence, _ in ends]
    if any(sequence.draft_states is not None for sequence, _ in ends):
        return starts
    filled: set[tuple[int, ...]] = set()
    for index in sorted(range(len(ends)), key=lambda i: starts[i]):
        table, end = ends[index][0].table, ends[index][1]
        size = table.block_size
        # The blocks of a run of tokens in all sections of layers.
        runs = list(zip(*(blocks[starts[index] // size :] for blocks in table.sections), strict=True))
        num_filled = next(place for place, run in enumerate(runs) if run not in filled)
        if num_filled:
            starts[index] = (starts[index] // size + num_filled) * size
        assert starts[index] < end, "shared blocks end before the last token"
        filled.update(runs[num_filled : end // size - starts[index] // size + num_filled])
    return starts


def _without_nan(logits: torch.Tensor) -> torch.Tensor:
    """Make rows uniform in which no logit or not every one is finite: verification divides by their distribution."""
    finite = torch.isfinite(logits.amax(dim=1, keepdim=True))
    return logits if bool(finite.all()) else torch.where(finite, logits, 0.0)
