"""One step of batched speculation: draft, verify, commit, roll back."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from helix_jobs.engine.drafters.base import NO_DRAFT_TOKENS
from helix_jobs.engine.random_numbers import Purpose, uniform
from helix_jobs.engine.sampler import apply_penalties, processed_probs
from helix_jobs.engine.step_layout import TokenSlice
from helix_jobs.engine.verification import SampledRow, Verdict, verify_greedy, verify_sampled

if TYPE_CHECKING:
    from collections.abc import Sequence as SequenceOf

    from helix_jobs.engine.drafters.base import Draft, Proposal
    from helix_jobs.engine.model_runner import ModelRunner
    from helix_jobs.engine.scheduler import Schedule
    from helix_jobs.engine.sequence import Sequence
    from helix_jobs.engine.speculator import Speculation, Speculator

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Emission:
    """What one sequence emitted in a step, and how many of its draft tokens were accepted."""

    sequence: Sequence
    token_ids: tuple[int, ...]
    num_drafted: int
    num_accepted: int


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """What a step did.

    Attributes:
        emissions: One for each sequence that was due to emit and did.
        not_finite: Sequences whose logits held NaN or infinity; nothing of theirs was committed.
        num_tokens: Tokens the target computed.
        draft_seconds: Time spent on drafting, the choice of depths included.
        target_seconds: Time of the target's pass. Where the device works asynchronously, up to its start only.
        attention_seconds: The part of it spent in attention.
        verify_seconds: Time of verification and commit, and of waiting for an asynchronous device.
    """

    emissions: tuple[Emission, ...]
    not_finite: tuple[Sequence, ...]
    num_tokens: int
    draft_seconds: float
    target_seconds: float
    attention_seconds: float
    verify_seconds: float


@dataclass(slots=True)
class _Emitter:
    """A sequence whose logits this step yields: a decode, or a prefill that ends a fresh prompt."""

    sequence: Sequence
    draft_ids: tuple[int, ...]
    first_draft_row: int | None  # in the proposal's distributions, if they are needed
    first_row: int  # among the rows of its kind; it has len(draft_ids) + 1
    is_greedy: bool  # the device finds its tokens; the rows of others are processed on the host


@dataclass(frozen=True, slots=True)
class _Scores:
    """What the target says.

    Attributes:
        emitters: The decodes first.
        logits: ``[num_greedy + num_processed + padding, vocab_size]``: the rows of greedy emitters, then of the others;
            None when there are none.
        num_greedy: Rows that the device decides.
        num_processed: Rows that are processed on the host.
        num_tokens: Tokens that the target computed.
    """

    emitters: list[_Emitter]
    logits: torch.Tensor | None
    num_greedy: int
    num_processed: int
    num_tokens: int


class SpeculativeStep:
    """Runs a schedule: the drafter proposes, one packed target pass scores, verification decides, sequences commit.

    Until the commit nothing of a sequence has changed but cache rows past its end and ``num_draft_computed``, which the
    drafter corrects before it drafts again, so a step that fails (out of memory, say) can be repeated with a smaller
    batch.
    """

    def __init__(self, target: ModelRunner, speculator: Speculator, vocab_size: int) -> None:
        self._target = target
        self._speculator = speculator
        self._vocab_size = vocab_size
        self._learns = True
        # Whether the device had nothing to do when the last step ended: then the next one's time is its own.
        self._is_idle = True

    @torch.no_grad()  # never inference_mode: DirectML tensors cannot live in it
    def run(self, schedule: Schedule) -> StepOutcome:
        """Compute one step and commit it, stop tokens honoured. Stop strings are the caller's."""
        is_idle, self._is_idle = self._is_idle, False
        started = time.perf_counter()
        speculation = self._speculator.speculate(schedule, is_idle=is_idle)
        # Passes that measured costs, and a step that failed, have run on this clock as well.
        self._target.take_attention_seconds()
        drafted = time.perf_counter()
        scores = self._score(schedule, speculation.proposal)
        scored = time.perf_counter()
        verdicts = self._verify(scores, speculation.proposal.draft_probs)
        emissions, not_finite = self._commit(schedule, scores.emitters, verdicts)
        # A step without logits is only started: an asynchronous device computes it while the next one is planned.
        self._is_idle = scores.logits is not None or self._target.is_synchronous
        has_own_time = self._is_idle and (is_idle or speculation.has_waited)
        if self._learns:
            seconds = time.perf_counter() - started - speculation.draft_seconds
            self._learn(schedule, speculation, verdicts, scores.num_tokens, seconds if has_own_time else None)
        ended = time.perf_counter()
        return StepOutcome(
            emissions=emissions,
            not_finite=not_finite,
            num_tokens=scores.num_tokens,
            draft_seconds=drafted - started,
            target_seconds=scored - drafted,
            attention_seconds=self._target.take_attention_seconds(),
            verify_seconds=ended - scored,
        )

    def clear_blocks(self, blocks: SequenceOf[int]) -> None:
        """Set cache blocks of target and draft back to zero."""
        self._target.cache.clear(blocks)
        self._speculator.clear_blocks(blocks)

    def _score(self, schedule: Schedule, proposal: Proposal) -> _Scores:
        """One target pass over prompt chunks, last tokens and drafts."""
        slices: list[TokenSlice] = []
        tokens: list[list[int]] = []
        for decode, draft in zip(schedule.decodes, proposal.drafts, strict=True):
            sequence = decode.sequence
            slices.append(TokenSlice(1 + len(draft.token_ids), len(sequence) - 1, sequence.table.blocks))
            tokens.append([sequence.token_ids[-1], *draft.token_ids])
        for prefill in schedule.prefills:
            sequence = prefill.sequence
            start = sequence.num_computed
            slices.append(TokenSlice(prefill.num_tokens, start, sequence.table.blocks))
            tokens.append(sequence.token_ids[start : start + prefill.num_tokens])
        plan = self._target.plan(slices)
        emitters: list[_Emitter] = []
        greedy_rows: list[int] = []
        processed_rows: list[int] = []

        def emit(sequence: Sequence, draft: Draft, end: int) -> None:
            is_greedy = sequence.params.is_greedy and not sequence.params.has_penalties
            rows = greedy_rows if is_greedy else processed_rows
            emitters.append(_Emitter(sequence, draft.token_ids, draft.first_row, len(rows), is_greedy))
            rows.extend(range(end - 1 - len(draft.token_ids), end))

        ends = [offset + part.num_tokens for offset, part in zip(plan.offsets, slices, strict=True)]
        for decode, draft, end in zip(schedule.decodes, proposal.drafts, ends, strict=False):
            emit(decode.sequence, draft, end)
        for prefill, end in zip(schedule.prefills, ends[len(schedule.decodes) :], strict=True):
            if prefill.emits:
                emit(prefill.sequence, NO_DRAFT_TOKENS, end)
        logits = self._target.forward(plan, tokens, greedy_rows + processed_rows)
        return _Scores(emitters, logits, len(greedy_rows), len(processed_rows), plan.num_tokens)

    def _verify(self, scores: _Scores, draft_probs: torch.Tensor | None) -> list[Verdict | None]:
        """Decide per emitter; None for a row whose logits are not finite."""
        if scores.logits is None:
            return []
        maxima, ids, host = self._download(scores)
        finite = torch.isfinite(maxima).tolist()
        processed = [emitter for emitter in scores.emitters if not emitter.is_greedy]
        processed_verdicts = iter(self._verify_on_host(processed, host, draft_probs) if processed else ())
        verdicts: list[Verdict | None] = []
        for emitter in scores.emitters:
            if emitter.is_greedy:
                rows = slice(emitter.first_row, emitter.first_row + len(emitter.draft_ids) + 1)
                verdicts.append(_if_finite(verify_greedy(ids[rows], emitter.draft_ids), emitter, finite))
            else:
                verdicts.append(next(processed_verdicts))
        return verdicts

    def _download(self, scores: _Scores) -> tuple[torch.Tensor, list[int], torch.Tensor]:
        """In one download: of greedy rows the maximum and its token, of the others the logits in float32.

        The maximum is NaN if any logit of its row is. float32 holds any token id exactly (below 2 ** 24).
        """
        assert scores.logits is not None, "there is something to decide"
        num_greedy, num_processed = scores.num_greedy, scores.num_processed
        # [rows and padding, vocab_size]
        logits = scores.logits.narrow(1, 0, self._vocab_size)
        if num_greedy == 0:
            return torch.empty(0), [], logits.float().cpu().narrow(0, 0, num_processed)
        if num_processed == 0:
            best = logits.max(dim=-1)
            maxima, ids = torch.stack((best.values.float(), best.indices.float())).cpu()
            return maxima, ids.long().tolist(), torch.empty(0)
        padding = len(logits) - num_greedy - num_processed
        greedy, processed, _ = logits.split((num_greedy, num_processed, padding))
        best = greedy.max(dim=-1)
        together = torch.cat((best.values.float(), best.indices.float(), processed.float().reshape(-1))).cpu()
        maxima, ids, host = together.split((num_greedy, num_greedy, num_processed * self._vocab_size))
        return maxima, ids.long().tolist(), host.view(num_processed, self._vocab_size)

    def _verify_on_host(
        self, emitters: list[_Emitter], host: torch.Tensor, draft_probs: torch.Tensor | None
    ) -> list[Verdict | None]:
        # [num_rows, 1]
        row_is_finite = torch.isfinite(host.max(dim=1, keepdim=True).values)
        finite = row_is_finite[:, 0].tolist()
        host = torch.where(row_is_finite, host, 0.0)
        verdicts: list[Verdict | None] = [None] * len(emitters)
        sampled: list[int] = []
        for index, emitter in enumerate(emitters):
            params = emitter.sequence.params
            rows = range(emitter.first_row, emitter.first_row + len(emitter.draft_ids) + 1)
            if params.has_penalties:
                self._penalise(emitter, host)
            if params.is_greedy:
                verdicts[index] = verify_greedy(host[rows.start : rows.stop].argmax(dim=1).tolist(), emitter.draft_ids)
            else:
                sampled.append(index)
        if sampled:
            chosen = [emitters[index] for index in sampled]
            for index, verdict in zip(sampled, _verify_sampled(chosen, host, draft_probs), strict=True):
                verdicts[index] = verdict
        return [_if_finite(verdict, e, finite) for verdict, e in zip(verdicts, emitters, strict=True)]

    def _penalise(self, emitter: _Emitter, host: torch.Tensor) -> None:
        """Each position is penalised for the drafts before it as if they stood: they do, if it is ever reached."""
        sequence = emitter.sequence
        prompt_ids = sequence.token_ids[: sequence.num_prompt_tokens]
        output_ids = sequence.output_token_ids
        for position in range(len(emitter.draft_ids) + 1):
            row = emitter.first_row + position
            seen = [*output_ids, *emitter.draft_ids[:position]]
            host[row] = apply_penalties(host[row], sequence.params, prompt_ids, seen)

    def _learn(
        self,
        schedule: Schedule,
        speculation: Speculation,
        verdicts: list[Verdict | None],
        num_tokens: int,
        seconds: float | None,
    ) -> None:
        """Learn from a step that took ``seconds``, drafting aside, or nobody knows. The decodes are the first emitters.

        The step is committed by now, so a fault in here is none of the step: it ends the learning.
        """
        decided = verdicts[: len(schedule.decodes)]
        accepted = [None if verdict is None else verdict.num_accepted for verdict in decided]
        try:
            self._speculator.learn(schedule, speculation, accepted)
            if seconds is not None:
                self._speculator.learn_cost(num_tokens, len(schedule.decodes), seconds)
        except Exception:
            logger.exception("learning from a step failed; costs and acceptance stay as they are")
            self._learns = False

    def _commit(
        self, schedule: Schedule, emitters: list[_Emitter], verdicts: list[Verdict | None]
    ) -> tuple[tuple[Emission, ...], tuple[Sequence, ...]]:
        now = time.monotonic()
        for prefill in schedule.prefills:
            prefill.sequence.num_computed += prefill.num_tokens
        emissions: list[Emission] = []
        not_finite: list[Sequence] = []
        for emitter, verdict in zip(emitters, verdicts, strict=True):
            sequence = emitter.sequence
            if verdict is None:
                not_finite.append(sequence)
                continue
            sequence.draft_tokens += len(emitter.draft_ids)
            sequence.accepted_tokens += verdict.num_accepted
            appended = sequence.commit(verdict.token_ids, now)
            # All but the last token have keys and values: the accepted drafts were computed as they were verified.
            sequence.num_computed = len(sequence) - 1
            emissions.append(Emission(sequence, tuple(appended), len(emitter.draft_ids), verdict.num_accepted))
        return tuple(emissions), tuple(not_finite)


def _if_finite(verdict: Verdict | None, emitter: _Emitter, finite: SequenceOf[bool]) -> Verdict | None:
    """A verdict counts if every row it rests on was finite; rows behind a rejected draft token may be anything."""
    if verdict is None:
        return None
    rows = finite[emitter.first_row : emitter.first_row + verdict.num_accepted + 1]
    return verdict if all(rows) else None


def _verify_sampled(emitters: list[_Emitter], host: torch.Tensor, draft_probs: torch.Tensor | None) -> list[Verdict]:
    """Process the sampled rows and verify them together."""
    picked: list[int] = []
    params = []
    rows = []
    for emitter in emitters:
        sequence, depth = emitter.sequence, len(emitter.draft_ids)
        start, seed = len(sequence), sequence.request.seed
        rows.append(
            SampledRow(
                draft_ids=emitter.draft_ids,
                first_row=len(picked),
                first_draft_row=emitter.first_draft_row,
                accept_uniforms=[uniform(seed, start + i, Purpose.ACCEPT) for i in range(depth)],
                final_uniforms=[uniform(seed, start + i, Purpose.FINAL) for i in range(depth + 1)],
            )
        )
        picked.extend(range(emitter.first_row, emitter.first_row + depth + 1))
        params.extend([sequence.params] * (depth + 1))
    return verify_sampled(rows, processed_probs(host[picked], params), draft_probs)
