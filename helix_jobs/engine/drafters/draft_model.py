"""DraftModelDrafter: a small model with its own paged cache runs ahead of the target."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from helix_jobs.engine.drafters.base import Proposal
from helix_jobs.engine.random_numbers import Purpose, uniform
from helix_jobs.engine.sampler import apply_penalties, processed_probs, sample
from helix_jobs.engine.step_layout import TokenSlice

if TYPE_CHECKING:
    from collections.abc import Sequence as SequenceOf

    from helix_jobs.engine.model_runner import ModelRunner
    from helix_jobs.engine.scheduler import Decode, Prefill, Schedule


class DraftModelDrafter:
    """Drafts K tokens in K ragged passes of the draft model.

    The first pass also catches up: on the prompt chunks that the target prefills in the same step, and on the one token
    that the draft has not seen when the target accepted its whole draft. The draft's cache uses the target's block
    tables (see ``BlockPool``).

    Args:
        runner: The draft model.
        vocab_size: The target's, to which draft logits are cut or padded.
    """

    def __init__(self, runner: ModelRunner, vocab_size: int) -> None:
        self._runner = runner
        self._vocab_size = vocab_size

    def propose(self, schedule: Schedule) -> Proposal:
        """Draft for every decode with a depth; see the class."""
        for decode in schedule.decodes:
            # The last step's rejected drafts, or a step that failed half-way: only what precedes the last token counts.
            sequence = decode.sequence
            sequence.num_draft_computed = min(sequence.num_draft_computed, len(sequence) - 1)
        drafting = [decode for decode in schedule.decodes if decode.depth > 0]
        logits = self._first_pass(drafting, schedule.prefills)
        if logits is None:
            return Proposal(tuple(() for _ in schedule.decodes))
        if any(not d.sequence.params.is_greedy or d.sequence.params.has_penalties for d in drafting):
            tokens, draft_probs = self._draft_on_host(drafting, logits)
        else:
            tokens, draft_probs = self._draft_on_device(drafting, logits), None
        drafted = {id(decode): tuple(ids) for decode, ids in zip(drafting, tokens, strict=True)}
        return Proposal(tuple(drafted.get(id(decode), ()) for decode in schedule.decodes), draft_probs)

    def clear_blocks(self, blocks: SequenceOf[int]) -> None:
        """Set blocks of the draft's cache back to zero."""
        self._runner.cache.clear(blocks)

    def _first_pass(self, drafting: SequenceOf[Decode], prefills: SequenceOf[Prefill]) -> torch.Tensor | None:
        """Compute what the draft's cache misses; return logits ``[len(drafting), vocab_size]``, None for no drafts."""
        ends = [(d.sequence, len(d.sequence)) for d in drafting]
        ends += [(p.sequence, p.sequence.num_computed + p.num_tokens) for p in prefills]
        ends = [(sequence, end) for sequence, end in ends if end > sequence.num_draft_computed]
        if not ends:
            return None
        slices = [
            TokenSlice(end - sequence.num_draft_computed, sequence.num_draft_computed, sequence.table.blocks)
            for sequence, end in ends
        ]
        layout = self._runner.plan(slices)
        tokens = self._runner.pack_tokens(
            layout, [self._readable(s.token_ids[s.num_draft_computed : end]) for s, end in ends]
        )
        # A decoding sequence always misses at least its last token, so the first slices are exactly the drafting ones.
        rows = [layout.offsets[i] + slices[i].num_tokens - 1 for i in range(len(drafting))]
        logits = self._runner.forward(layout, tokens, rows)
        for sequence, end in ends:
            sequence.num_draft_computed = end
        return logits

    def _next_pass(self, active: SequenceOf[Decode], position: int, tokens: torch.Tensor) -> torch.Tensor:
        """Feed each one's ``position``-th draft token, ``[len(active)]``; return its logits, a row each."""
        slices = [TokenSlice(1, len(d.sequence) + position, d.sequence.table.blocks) for d in active]
        layout = self._runner.plan(slices)
        logits = self._runner.forward(layout, self._runner.reorder(layout, tokens), layout.offsets)
        assert logits is not None, "every row was asked for"
        for decode in active:
            decode.sequence.num_draft_computed = len(decode.sequence) + position + 1
        return logits

    def _draft_on_device(self, drafting: SequenceOf[Decode], logits: torch.Tensor) -> list[list[int]]:
        """All greedy: tokens stay on the device from pass to pass, and one download brings them all."""
        # Longest first, so that the active ones of every pass are a prefix.
        by_depth = sorted(range(len(drafting)), key=lambda i: -drafting[i].depth)
        ids = self._fit(logits).argmax(dim=-1)
        if by_depth != list(range(len(drafting))):
            ids = ids.index_select(0, torch.tensor(by_depth, dtype=torch.int64).to(ids.device))
        passes = [ids]
        for position in range(drafting[by_depth[0]].depth - 1):
            active = [drafting[i] for i in by_depth if drafting[i].depth > position + 1]
            ids = self._fit(self._next_pass(active, position, ids.narrow(0, 0, len(active)))).argmax(dim=-1)
            passes.append(ids)
        counts = [len(ids) for ids in passes]
        downloaded = torch.cat(passes).cpu().split(counts)
        columns: list[list[int]] = [ids.tolist() for ids in downloaded]
        tokens: list[list[int]] = [[] for _ in drafting]
        for column in columns:
            for place, token in enumerate(column):
                tokens[by_depth[place]].append(token)
        return tokens

    def _draft_on_host(
        self, drafting: SequenceOf[Decode], logits: torch.Tensor
    ) -> tuple[list[list[int]], torch.Tensor | None]:
        """Some sampled or penalised: logits come down each pass and are processed as the target's will be."""
        tokens: list[list[int]] = [[] for _ in drafting]
        probs_rows: list[list[torch.Tensor]] = [[] for _ in drafting]
        active = list(range(len(drafting)))
        position = 0
        while True:
            host = _without_nan(self._fit(logits).float().cpu())
            for place, index in enumerate(active):
                sequence = drafting[index].sequence
                if sequence.params.has_penalties:
                    host[place] = apply_penalties(
                        host[place],
                        sequence.params,
                        sequence.token_ids[: sequence.num_prompt_tokens],
                        sequence.output_token_ids + tokens[index],
                    )
            ids = host.argmax(dim=-1).tolist()
            sampled = [place for place, index in enumerate(active) if not drafting[index].sequence.params.is_greedy]
            if sampled:
                sequences = [drafting[active[place]].sequence for place in sampled]
                probs = processed_probs(host[sampled], [s.params for s in sequences])
                numbers = [uniform(s.request.seed, len(s) + position, Purpose.DRAFT) for s in sequences]
                for row, (place, token) in enumerate(zip(sampled, sample(probs, numbers), strict=True)):
                    ids[place] = token
                    probs_rows[active[place]].append(probs[row])
            for place, index in enumerate(active):
                tokens[index].append(ids[place])
            kept = [place for place, index in enumerate(active) if drafting[index].depth > position + 1]
            if not kept:
                break
            active = [active[place] for place in kept]
            fed = torch.tensor([ids[place] for place in kept], dtype=torch.int64).to(logits.device)
            logits = self._next_pass([drafting[index] for index in active], position, fed)
            position += 1
        flat = [row for rows in probs_rows for row in rows]
        return tokens, torch.stack(flat) if flat else None

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


def _without_nan(logits: torch.Tensor) -> torch.Tensor:
    """Rows that are not finite become uniform: verification needs a distribution, however bad, to divide by."""
    finite = torch.isfinite(logits.max(dim=1, keepdim=True).values)
    return torch.where(finite, logits, 0.0)
