"""TargetPass: the target's packed pass over a whole step, and the one download of its scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch

from helix_jobs.engine.attention.step_layout import TokenSlice
from helix_jobs.engine.devices.shape_sizes import token_size

if TYPE_CHECKING:
    from collections.abc import Sequence as SequenceOf

    from helix_jobs.engine.attention.step_plan import StepPlan
    from helix_jobs.engine.model.runner import ModelRunner
    from helix_jobs.engine.speculation.drafters.awaited_drafts import AwaitedDrafts
    from helix_jobs.engine.speculation.turn import Turn

_NO_ROWS: Final = torch.empty(0)


@dataclass(frozen=True, slots=True)
class Scores:
    """The target's logits, on the device.

    Attributes:
        logits: ``[num_greedy + num_processed + num_scored + padding, vocab_size]``: the rows of greedy turns, then
            those for the host; the other way round where waits are expensive. None when no row is wanted.
        num_greedy: Rows whose argmax the device takes.
        num_processed: Rows that are processed on the host.
        num_scored: Rows of prompts, behind those, whose log probabilities the host takes.
        num_tokens: Tokens that the target computed.
        draft_ids: Draft tokens that the draft model left on the device, or None.
    """

    logits: torch.Tensor | None
    num_greedy: int
    num_processed: int
    num_scored: int
    num_tokens: int
    draft_ids: torch.Tensor | None

    @property
    def num_host(self) -> int:
        """Rows that are copied to the host whole."""
        return self.num_processed + self.num_scored


@dataclass(frozen=True, slots=True)
class Download:
    """The part of the scores that verification needs, on the host.

    Attributes:
        maxima: The highest logit of each greedy row; NaN if any logit of the row is.
        ids: The token of that logit, for each greedy row.
        processed: ``[num_processed, vocab_size]`` float32 logits of the other turns' rows.
        scored: ``[num_scored, vocab_size]`` float32 logits of prompts.
        draft_ids: ``draft_ids`` of the scores; empty when there are none.
    """

    maxima: torch.Tensor
    ids: list[int]
    processed: torch.Tensor
    scored: torch.Tensor
    draft_ids: list[int]


class TargetPass:
    """Scores prompt chunks, last tokens and drafts in one pass.

    Args:
        target: The target.
        vocab_size: The logits are cut to this size.
    """

    def __init__(self, target: ModelRunner, vocab_size: int) -> None:
        self._target = target
        self._vocab_size = vocab_size

    def score(self, turns: SequenceOf[Turn], awaited: AwaitedDrafts | None) -> Scores:
        """Start the pass, after the draft model's passes if their drafts are awaited. Sets each turn's rows."""
        slices: list[TokenSlice] = []
        tokens: list[list[int]] = []
        for turn in turns:
            sequence = turn.sequence
            num_tokens, (blocks, *further) = turn.num_known + turn.num_drafted, sequence.table.sections
            states, adapter = sequence.begin_states(turn.end), sequence.adapter
            slices.append(TokenSlice(num_tokens, turn.start, blocks, states, further, adapter, sequence.table.is_long))
            tokens.append([*sequence.token_ids[turn.start : turn.end], *turn.draft_ids])
        plan = self._target.plan(slices)
        greedy_rows: list[int] = []
        processed_rows: list[int] = []
        scored_rows: list[int] = []
        for turn, offset, part in zip(turns, plan.offsets, slices, strict=True):
            if turn.emits:
                rows = greedy_rows if turn.is_greedy else processed_rows
                end = offset + part.num_tokens
                turn.first_row = len(rows)
                rows.extend(range(end - 1 - turn.num_drafted, end))
            if turn.scored:
                turn.first_scored_row = len(scored_rows)
                scored_rows.extend(offset + position - turn.start for position in turn.scored)
        host_rows = processed_rows + scored_rows
        rows = host_rows + greedy_rows if self._target.has_dear_waits else greedy_rows + host_rows
        if awaited is None:
            logits, draft_ids = self._target.forward(plan, tokens, rows), None
        else:
            sources = awaited.sources
            own = [sources.get(turn, []) for turn in turns]
            logits, draft_ids = self._run_behind(awaited, own, plan, tokens, rows)
        return Scores(logits, len(greedy_rows), len(processed_rows), len(scored_rows), plan.num_tokens, draft_ids)

    def download(self, scores: Scores) -> Download:
        """Wait for the device once, and copy to the host what verification needs."""
        assert scores.logits is not None, "there is something to decide"
        num_greedy, num_host = scores.num_greedy, scores.num_host
        # [rows and padding, vocab_size]
        logits = scores.logits.narrow(1, 0, self._vocab_size)
        if self._target.has_dear_waits:
            return self._download_together(scores, logits)
        if num_greedy == 0:
            host = logits.float().cpu()
            return Download(torch.empty(0), [], *_parts(host, scores), [])
        if num_host == 0:
            best = logits.max(dim=-1)
            # float32 holds any token id exactly (below 2 ** 24).
            maxima, ids = torch.stack((best.values.float(), best.indices.float())).cpu()
            return Download(maxima, ids.long().tolist(), _NO_ROWS, _NO_ROWS, [])
        padding = len(logits) - num_greedy - num_host
        greedy, rows, _ = logits.split((num_greedy, num_host, padding))
        best = greedy.max(dim=-1)
        if self._target.is_synchronous:  # nothing is copied
            return Download(best.values.float(), best.indices.tolist(), *_parts(rows.float(), scores), [])
        together = torch.cat((best.values.float(), best.indices.float(), rows.float().reshape(-1))).cpu()
        maxima, ids, host = together.split((num_greedy, num_greedy, num_host * self._vocab_size))
        return Download(maxima, ids.long().tolist(), *_parts(host.view(num_host, -1), scores), [])

    def _run_behind(
        self,
        awaited: AwaitedDrafts,
        sources: list[list[int]],
        plan: StepPlan,
        tokens: list[list[int]],
        rows: list[int],
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Copy all passes of the step to the device at once, and start them; return logits and draft tokens."""
        planned = (
            self._target.prepare_behind(plan, tokens, sources, rows)
            if any(sources)
            else self._target.prepare(plan, tokens, rows)
        )
        *passes, last = self._target.upload([*awaited.passes, planned])
        draft_ids = awaited.run(passes)
        return self._target.run(last, draft_ids), draft_ids

    def _download_together(self, scores: Scores, logits: torch.Tensor) -> Download:
        """Download everything in one copy, using only shapes that many steps have.

        To keep shapes common, the maximum of every row is found, and the rows for the host include padding.
        """
        best = logits.max(dim=-1)
        parts = [best.values.float(), best.indices.float()]
        if scores.draft_ids is not None:
            parts.append(scores.draft_ids.float())
        if scores.num_host:
            # A view without an offset, as these rows come first.
            padded = logits.narrow(0, 0, min(token_size(scores.num_host), len(logits)))
            parts.append(padded.float().reshape(-1))
        maxima, ids, *others = torch.cat(parts).cpu().split([len(part) for part in parts])
        draft_ids = [] if scores.draft_ids is None else others.pop(0).long().tolist()
        host = others[0].view(-1, self._vocab_size) if others else _NO_ROWS
        first, end = scores.num_host, scores.num_host + scores.num_greedy
        return Download(maxima[first:end], ids[first:end].long().tolist(), *_parts(host, scores), draft_ids)


def _parts(host: torch.Tensor, scores: Scores) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows that are processed, and those of prompts."""
    return host[: scores.num_processed], host[scores.num_processed : scores.num_host]
