"""DraftModelDrafter: a small model with its own paged cache runs ahead of the target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from helix_jobs.engine.drafters.base import Draft
from helix_jobs.engine.random_numbers import Purpose, uniform
from helix_jobs.engine.sampler import apply_penalties, processed_probs, sample
from helix_jobs.engine.step_layout import TokenSlice

if TYPE_CHECKING:
    from collections.abc import Sequence as SequenceOf

    from helix_jobs.engine.model_runner import ModelRunner
    from helix_jobs.engine.scheduler import Prefill
    from helix_jobs.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class ModelDrafts:
    """What the draft model proposed.

    Attributes:
        drafts: One per sequence that was asked for.
        draft_probs: As in ``Proposal``.
        passes: Tokens of each pass of the draft model.
    """

    drafts: tuple[Draft, ...]
    draft_probs: torch.Tensor | None
    passes: tuple[int, ...]


class DraftModelDrafter:
    """Drafts K tokens in K ragged passes of the draft model.

    The first pass also catches up: on whatever of a sequence the draft has not computed yet, be it the whole prompt or
    the one token that it has not seen when the target accepted its whole draft. The draft's cache uses the target's
    block tables (see ``BlockPool``).

    Args:
        runner: The draft model.
        vocab_size: The target's, to which draft logits are cut or padded.
    """

    def __init__(self, runner: ModelRunner, vocab_size: int) -> None:
        self._runner = runner
        self._vocab_size = vocab_size
        self._passes: list[int] = []

    def draft(self, depths: SequenceOf[tuple[Sequence, int]], prefills: SequenceOf[Prefill] = ()) -> ModelDrafts:
        """Draft for each sequence as many tokens as its depth says.

        Args:
            depths: Sequences and their depths, each above 0.
            prefills: Prompt chunks to keep up with. A sequence that is not kept up with is caught up when it drafts.
        """
        for sequence, _ in depths:
            # The last step's rejected drafts, or a step that failed half-way: only what precedes the last token counts.
            sequence.num_draft_computed = min(sequence.num_draft_computed, len(sequence) - 1)
        self._passes = []
        logits = self._first_pass(depths, prefills)
        if logits is None:
            return ModelDrafts((), None, tuple(self._passes))
        if any(not s.params.is_greedy or s.params.has_penalties for s, _ in depths):
            drafts, draft_probs = self._draft_on_host(depths, logits)
        else:
            drafts, draft_probs = [Draft(tuple(ids)) for ids in self._draft_on_device(depths, logits)], None
        return ModelDrafts(tuple(drafts), draft_probs, tuple(self._passes))

    def missing_tokens(self, sequence: Sequence) -> int:
        """Tokens before its last that the draft's cache does not hold yet."""
        return max(0, len(sequence) - 1 - sequence.num_draft_computed)

    def clear_blocks(self, blocks: SequenceOf[int]) -> None:
        """Set blocks of the draft's cache back to zero."""
        self._runner.cache.clear(blocks)

    def _first_pass(
        self, depths: SequenceOf[tuple[Sequence, int]], prefills: SequenceOf[Prefill]
    ) -> torch.Tensor | None:
        """Compute what the draft's cache misses; return logits ``[len(depths), vocab_size]``, None for no drafts."""
        ends = [(sequence, len(sequence)) for sequence, _ in depths]
        ends += [(p.sequence, p.sequence.num_computed + p.num_tokens) for p in prefills]
        ends = [(sequence, end) for sequence, end in ends if end > sequence.num_draft_computed]
        if not ends:
            return None
        starts = _disjoint_starts(ends)
        slices = [
            TokenSlice(end - start, start, sequence.table.blocks)
            for (sequence, end), start in zip(ends, starts, strict=True)
        ]
        layout = self._runner.plan(slices)
        tokens = self._runner.pack_tokens(
            layout,
            [self._readable(s.token_ids[start:end]) for (s, end), start in zip(ends, starts, strict=True)],
        )
        # A decoding sequence always misses at least its last token, so the first slices are exactly the drafting ones.
        rows = [layout.offsets[i] + slices[i].num_tokens - 1 for i in range(len(depths))]
        self._passes.append(layout.num_tokens)
        logits = self._runner.forward(layout, tokens, rows)
        for sequence, end in ends:
            sequence.num_draft_computed = sequence.table.mark_draft_filled(end)
        return logits

    def _next_pass(self, active: SequenceOf[Sequence], position: int, tokens: torch.Tensor) -> torch.Tensor:
        """Feed each one's ``position``-th draft token, ``[len(active)]``; return its logits, a row each."""
        slices = [TokenSlice(1, len(sequence) + position, sequence.table.blocks) for sequence in active]
        layout = self._runner.plan(slices)
        self._passes.append(layout.num_tokens)
        logits = self._runner.forward(layout, self._runner.reorder(layout, tokens), layout.offsets)
        assert logits is not None, "every row was asked for"
        for sequence in active:
            sequence.num_draft_computed = len(sequence) + position + 1
        return logits

    def _draft_on_device(self, depths: SequenceOf[tuple[Sequence, int]], logits: torch.Tensor) -> list[list[int]]:
        """All greedy: tokens stay on the device from pass to pass, and one download brings them all."""
        # Longest first, so that the active ones of every pass are a prefix.
        by_depth = sorted(range(len(depths)), key=lambda i: -depths[i][1])
        ids = self._fit(logits).argmax(dim=-1)
        if by_depth != list(range(len(depths))):
            ids = ids.index_select(0, torch.tensor(by_depth, dtype=torch.int64).to(ids.device))
        passes = [ids]
        for position in range(depths[by_depth[0]][1] - 1):
            active = [depths[i][0] for i in by_depth if depths[i][1] > position + 1]
            ids = self._fit(self._next_pass(active, position, ids.narrow(0, 0, len(active)))).argmax(dim=-1)
            passes.append(ids)
        counts = [len(ids) for ids in passes]
        downloaded = torch.cat(passes).cpu().split(counts)
        columns: list[list[int]] = [ids.tolist() for ids in downloaded]
        tokens: list[list[int]] = [[] for _ in depths]
        for column in columns:
            for place, token in enumerate(column):
                tokens[by_depth[place]].append(token)
        return tokens

    def _draft_on_host(
        self, depths: SequenceOf[tuple[Sequence, int]], logits: torch.Tensor
    ) -> tuple[list[Draft], torch.Tensor | None]:
        """Some sampled or penalised: logits come down each pass and are processed as the target's will be."""
        tokens: list[list[int]] = [[] for _ in depths]
        probs_rows: list[list[torch.Tensor]] = [[] for _ in depths]
        active = list(range(len(depths)))
        position = 0
        while True:
            host = _without_nan(self._fit(logits).float().cpu())
            for place, index in enumerate(active):
                sequence = depths[index][0]
                if sequence.params.has_penalties:
                    host[place] = apply_penalties(
                        host[place],
                        sequence.params,
                        sequence.token_ids[: sequence.num_prompt_tokens],
                        sequence.output_token_ids + tokens[index],
                    )
            ids = host.argmax(dim=-1).tolist()
            sampled = [place for place, index in enumerate(active) if not depths[index][0].params.is_greedy]
            if sampled:
                sequences = [depths[active[place]][0] for place in sampled]
                probs = processed_probs(host[sampled], [s.params for s in sequences])
                numbers = [uniform(s.request.seed, len(s) + position, Purpose.DRAFT) for s in sequences]
                for row, (place, token) in enumerate(zip(sampled, sample(probs, numbers), strict=True)):
                    ids[place] = token
                    probs_rows[active[place]].append(probs[row])
            for place, index in enumerate(active):
                tokens[index].append(ids[place])
            kept = [place for place, index in enumerate(active) if depths[index][1] > position + 1]
            if not kept:
                break
            active = [active[place] for place in kept]
            fed = torch.tensor([ids[place] for place in kept], dtype=torch.int64).to(logits.device)
            logits = self._next_pass([depths[index][0] for index in active], position, fed)
            position += 1
        drafts, flat = [], list[torch.Tensor]()
        for ids_of_one, rows in zip(tokens, probs_rows, strict=True):
            drafts.append(Draft(tuple(ids_of_one), len(flat) if rows else None))
            flat.extend(rows)
        return drafts, torch.stack(flat) if flat else None

    def _readable(self, token_ids: SequenceOf[int]) -> SequenceOf[int]:
        """Replace ids the target emits and the draft has no embedding for: padding rows, in practice."""
        limit = self._runner.num_embeddings
        if limit >= self._vocab_size:
            return token_ids
        return [token_id if token_id < limit else 0 for token_id in token_ids]

    def _fit(self, logits: torch.Tensor) -> torch.Tensor:
        """Cut padded vocabulary rows, or pad missing ones with an impossible score: ``[n, target vocab_size]``."""
        width = logits.shape[1]
        if width == self._vocab_size:
            return logits
        if width > self._vocab_size:
            return logits.narrow(1, 0, self._vocab_size)
        filler = torch.full((logits.shape[0], self._vocab_size - width), -1e30, dtype=torch.float32)
        return torch.cat([logits.float(), filler.to(logits.device)], dim=1)


def _disjoint_starts(ends: SequenceOf[tuple[Sequence, int]]) -> list[int]:
    """Where each sequence's slice of a catching-up pass begins, so that no cache row is written twice.

    Sequences may share blocks that the draft has not filled. The one that misses most computes them; the others begin
    behind them and read them in the same pass, for a layer writes the keys and values of every slice before any query
    is attended for. What a block is shared for ends before a sequence's last token, so no slice is left empty.

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
