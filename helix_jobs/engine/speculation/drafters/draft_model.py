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
from helix_jobs.engine.sampling.sampler import processed_probs, sample
from helix_jobs.engine.speculation.drafters.awaited_drafts import AwaitedDrafts
from helix_jobs.engine.speculation.drafters.protocol import NOTHING_COMPUTED, Draft, Proposal

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Sequence as SequenceOf

    from helix_jobs.engine.model.runner import ModelRunner, Pass, PlannedPass
    from helix_jobs.engine.schedule.sequence import Sequence
    from helix_jobs.engine.speculation.turn import Turn

# A score that no token wins with.
_IMPOSSIBLE: Final = -1e30


class Drafting:
    """A turn that drafts, and what it has so far."""

    def __init__(self, turn: Turn) -> None:
        self.turn = turn
        self.sequence = turn.sequence
        self.depth = turn.depth
        self.is_greedy = turn.sequence.takes_argmax
        self.token_ids: list[int] = []
        # Of each drafted position, of sampled sequences only: ``[vocab_size]``.
        self.probs: list[torch.Tensor] = []


@dataclass(frozen=True, slots=True)
class PlannedDrafts:
    """All passes of one step, planned before the first of them runs.

    Attributes:
        drafting: The turns that draft, as they were asked for.
        batches: Of each drafted position, those of them that are as deep, in the order of their tokens.
        ends: All sequences that the first pass catches up on, and where it leaves each.
        passes: One a drafted position; the first one catches up, and may do nothing else.
    """

    drafting: tuple[Drafting, ...]
    batches: tuple[list[Drafting], ...]
    ends: tuple[tuple[Sequence, int], ...]
    passes: tuple[PlannedPass, ...]


class DraftModelDrafter:
    """Drafts K tokens in K ragged passes of the draft model.

    The first pass also catches up: on whatever of a sequence the draft has not computed yet, be it the whole prompt or
    the one token that it has not seen when the target accepted its whole draft. The draft's cache uses the target's
    block tables (see ``BlockPool``).

    Args:
        runner: The draft model.
        vocab_size: The target's, to which draft logits are cut or, where they are sampled from, padded.
    """

    name: Final = "model"

    def __init__(self, runner: ModelRunner, vocab_size: int) -> None:
        self._runner = runner
        self._vocab_size = vocab_size

    def propose(self, turns: SequenceOf[Turn], prefills: SequenceOf[Turn] = ()) -> Proposal:
        """Draft for each turn as many tokens as its depth says.

        All passes are planned before the first one and brought to the device together.

        Args:
            turns: Decodes with a depth above 0.
            prefills: Prompt chunks to keep up with. A sequence that is not kept up with is caught up when it drafts.
        """
        if self._runner.has_dear_waits:
            return self._draft_on_device(turns, prefills)
        started = time.perf_counter()
        # Greedy ones first: the device finds their tokens, the logits of the others' rows come down.
        planned = self._plan(turns, prefills, rank=lambda one: not one.is_greedy)
        if planned is None:
            return NOTHING_COMPUTED
        first, *following = self._runner.upload(planned.passes)
        logits = self._runner.run(first)
        for sequence, end in planned.ends:
            sequence.num_draft_computed = sequence.table.mark_draft_filled(end)
        if logits is not None:
            self._extend(planned.batches, following, logits)
        draft_probs = _hand_over(planned.drafting)
        passes = tuple(one.plan.num_tokens for one in planned.passes)
        return Proposal(draft_probs, passes, time.perf_counter() - started, has_waited=bool(turns))

    def _draft_on_device(self, turns: SequenceOf[Turn], prefills: SequenceOf[Turn]) -> Proposal:
        """Plan what a step computes that waits once; nothing is computed before its target pass."""
        # Passes of one size, so that shapes repeat whatever the depths: small steps are no faster with less in them.
        planned = self._plan(turns, prefills, rank=lambda one: -one.depth, least_tokens=min(len(turns), SMALL_STEP))
        if planned is None:
            return NOTHING_COMPUTED
        for turn in turns:
            turn.draft = Draft((), num_awaited=turn.depth)
        return Proposal(awaited=AwaitedDrafts(self._runner, planned, self._vocab_size))

    def missing_tokens(self, sequence: Sequence) -> int:
        """Tokens before its last that the draft's cache does not hold yet."""
        return max(0, len(sequence) - 1 - sequence.num_draft_computed)

    def observe(self, sequence: Sequence, num_drafted: int, num_accepted: int) -> None:
        """A model learns nothing; how often it is right is for the choice of depths."""

    def forget(self, sequence: Sequence) -> None:
        """Everything of a sequence stands in the blocks that it gives back."""

    def clear(self, blocks: SequenceOf[int]) -> None:
        """Set blocks of the draft's cache back to zero."""
        self._runner.cache.clear(blocks)

    def _plan(
        self,
        turns: SequenceOf[Turn],
        prefills: SequenceOf[Turn],
        *,
        rank: Callable[[Drafting], int],
        least_tokens: int = 0,
    ) -> PlannedDrafts | None:
        """Plan every pass; ``rank`` orders the tokens of each. None if there is nothing to compute."""
        for sequence in (turn.sequence for turn in turns):
            # The last step's rejected drafts, or a step that failed half-way: only what precedes the last token counts.
            sequence.num_draft_computed = min(sequence.num_draft_computed, len(sequence) - 1)
        drafting = [Drafting(turn) for turn in turns]
        ranked = sorted(drafting, key=rank)
        batches = [
            [one for one in ranked if one.depth > position]
            for position in range(max((one.depth for one in drafting), default=0))
        ]
        ends = [(one.sequence, len(one.sequence)) for one in ranked]
        ends += [(prefill.sequence, prefill.end) for prefill in prefills]
        ends = [(sequence, end) for sequence, end in ends if end > sequence.num_draft_computed]
        if not ends:
            return None
        passes = [self._plan_first(ends, len(drafting))]
        for position, (previous, batch) in enumerate(itertools.pairwise(batches)):
            passes.append(self._plan_next(previous, batch, position, least_tokens))
        return PlannedDrafts(tuple(drafting), tuple(batches), tuple(ends), tuple(passes))

    def _plan_first(self, ends: SequenceOf[tuple[Sequence, int]], num_drafting: int) -> PlannedPass:
        """Compute what the draft's cache misses. The first of the sequences are those that draft."""
        starts = _disjoint_starts(ends)
        slices = [
            TokenSlice(end - start, start, sequence.table.blocks)
            for (sequence, end), start in zip(ends, starts, strict=True)
        ]
        plan = self._runner.plan(slices)
        tokens = [self._readable(s.token_ids[start:end]) for (s, end), start in zip(ends, starts, strict=True)]
        # A decoding sequence always misses at least its last token, so the first slices are exactly the drafting ones.
        rows = [plan.offsets[index] + slices[index].num_tokens - 1 for index in range(num_drafting)]
        return self._runner.prepare(plan, tokens, rows)

    def _plan_next(
        self, previous: list[Drafting], batch: list[Drafting], position: int, least_tokens: int
    ) -> PlannedPass:
        """Read each one's ``position``-th draft token, which the pass before leaves on the device."""
        slices = [TokenSlice(1, len(one.sequence) + position, one.sequence.table.blocks) for one in batch]
        places = {id(one): place for place, one in enumerate(previous)}
        plan = self._runner.plan(slices, least_tokens)
        return self._runner.continue_pass(plan, [places[id(one)] for one in batch], least_tokens)

    def _extend(self, batches: SequenceOf[list[Drafting]], following: list[Pass], logits: torch.Tensor) -> None:
        """Draft position after position; tokens of greedy sequences stay on the device until the last."""
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
                one.sequence.num_draft_computed = len(one.sequence) + position + 1
        if not found:
            return
        counts = [len(tokens) for tokens in found]
        # Greedy sequences may end before others do, and padding stands behind them.
        for batch, ids in zip(batches, torch.cat(found).cpu().split(counts), strict=False):
            for one, token in zip(batch, ids.tolist(), strict=False):
                if one.is_greedy:
                    one.token_ids.append(token)

    def _choose(
        self, batch: list[Drafting], position: int, logits: torch.Tensor
    ) -> tuple[torch.Tensor | None, list[int]]:
        """Each one's next token: those of greedy sequences on the device, perhaps with padding; then the others'."""
        num_greedy = sum(one.is_greedy for one in batch)
        # Rows that the target's vocabulary lacks are cut; those that the draft's lacks can never be chosen.
        logits = logits.narrow(1, 0, min(self._vocab_size, logits.shape[1]))
        if num_greedy == len(batch):
            return logits.argmax(dim=-1), []
        greedy, processed, _ = logits.split((num_greedy, len(batch) - num_greedy, len(logits) - len(batch)))
        others = self._process(batch[num_greedy:], position, processed.float().cpu())
        return (greedy.argmax(dim=-1) if num_greedy else None), others

    def _process(self, batch: list[Drafting], position: int, host: torch.Tensor) -> list[int]:
        """Tokens of sequences that the host decides, from logits shaped and processed as the target's will be."""
        missing = self._vocab_size - host.shape[1]
        if missing > 0:
            host = torch.cat((host, torch.full((len(host), missing), _IMPOSSIBLE)), dim=1)
        host = _without_nan(host)
        for row, one in enumerate(batch):
            if one.sequence.processors:
                output_ids = one.sequence.output_token_ids + one.token_ids
                shape_logits(host[row], one.sequence.processors, output_ids)
        ids: list[int] = host.argmax(dim=-1).tolist()
        rows = [row for row, one in enumerate(batch) if not one.sequence.params.is_greedy]
        if rows:
            sequences = [batch[row].sequence for row in rows]
            probs = processed_probs(host[rows], [s.params for s in sequences])
            numbers = [uniform(s.request.seed, len(s) + position, Purpose.DRAFT) for s in sequences]
            for place, (row, token) in enumerate(zip(rows, sample(probs, numbers), strict=True)):
                ids[row] = token
                batch[row].probs.append(probs[place])
        for one, token in zip(batch, ids, strict=True):
            one.token_ids.append(token)
        return ids

    def _readable(self, token_ids: SequenceOf[int]) -> SequenceOf[int]:
        """Replace ids the target emits and the draft has no embedding for: padding rows, in practice."""
        limit = self._runner.num_embeddings
        if limit >= self._vocab_size:
            return token_ids
        return [token_id if token_id < limit else 0 for token_id in token_ids]


def _hand_over(drafting: SequenceOf[Drafting]) -> torch.Tensor | None:
    """Give each turn its draft; return the distributions of those that were sampled, one behind the other."""
    probs: list[torch.Tensor] = []
    for one in drafting:
        one.turn.draft = Draft(tuple(one.token_ids), len(probs) if one.probs else None)
        probs.extend(one.probs)
    return torch.stack(probs) if probs else None


def _disjoint_starts(ends: SequenceOf[tuple[Sequence, int]]) -> list[int]:
    """Where each sequence's slice of a catching-up pass begins, so that no cache row is written twice.

    Sequences may share blocks that the draft has not filled. The one that misses most computes them; the others begin
    behind them and read them in the same pass, for a layer writes the keys and values of every slice before any query
    is attended for; code that does not is given no such pass, see ``NativeInt8Decoder.serves``. What a block is shared
    for ends before a sequence's last token, so no slice is left empty.

    Args:
        ends: Sequences, and where their slices end.
    """
    starts = [sequence.num_draft_computed for sequence, _ in ends]
    filled: set[int] = set()
    for index in sorted(range(len(ends)), key=lambda i: starts[i]):
        table, end = ends[index][0].table, ends[index][1]
        size = table.block_size
        while table.blocks[starts[index] // size] in filled:
            starts[index] = (starts[index] // size + 1) * size
        assert starts[index] < end, "shared blocks end before the last token"
        filled.update(table.blocks[starts[index] // size : end // size])
    return starts


def _without_nan(logits: torch.Tensor) -> torch.Tensor:
    """Rows that are not finite become uniform: verification needs a distribution, however bad, to divide by."""
    finite = torch.isfinite(logits.max(dim=1, keepdim=True).values)
    return torch.where(finite, logits, 0.0)
