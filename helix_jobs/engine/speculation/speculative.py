"""One step of batched speculation: draft, verify, commit, roll back."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from helix_jobs.engine.sampling.random_numbers import Purpose, uniform
from helix_jobs.engine.sampling.sampler import apply_penalties, processed_probs
from helix_jobs.engine.sampling.verification import SampledRow, Verdict, verify_greedy, verify_sampled
from helix_jobs.engine.speculation.target_pass import TargetPass

if TYPE_CHECKING:
    from collections.abc import Sequence as SequenceOf

    from helix_jobs.engine.model.runner import ModelRunner
    from helix_jobs.engine.schedule.scheduler import Decode, Schedule
    from helix_jobs.engine.schedule.sequence import Sequence
    from helix_jobs.engine.speculation.speculator import Speculation, Speculator
    from helix_jobs.engine.speculation.target_pass import Download, Emitter

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Emission:
    """What one sequence emitted in a step, and how many of its draft tokens were accepted."""

    sequence: Sequence
    token_ids: tuple[int, ...]
    num_drafted: int
    num_accepted: int


@dataclass(frozen=True, slots=True)
class Lesson:
    """What the drafters and the depth controller can learn from a step.

    Attributes:
        decodes: The sequences that decoded.
        speculation: Their drafts.
        num_accepted: One per decode: the accepted draft tokens, None without a verdict.
        num_tokens: Tokens the target computed.
        seconds: What the step took; None where that is not known, as the device was busy with another.
    """

    decodes: tuple[Decode, ...]
    speculation: Speculation
    num_accepted: tuple[int | None, ...]
    num_tokens: int
    seconds: float | None


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """What a step did.

    Attributes:
        emissions: One for each sequence that was due to emit and did.
        not_finite: Sequences whose logits held NaN or infinity; nothing of theirs was committed.
        num_tokens: Tokens the target computed.
        draft_seconds: Time spent on drafting, the choice of depths included; on planning that alone where drafts are
            awaited on the device (see ``AwaitedDrafts``).
        target_seconds: Time of the target's pass. Where the device works asynchronously, up to its start only.
        attention_seconds: The part of it spent in attention.
        verify_seconds: Time of verification and commit, and of waiting for an asynchronous device.
        lesson: For ``SpeculativeStep.learn``.
    """

    emissions: tuple[Emission, ...]
    not_finite: tuple[Sequence, ...]
    num_tokens: int
    draft_seconds: float
    target_seconds: float
    attention_seconds: float
    verify_seconds: float
    lesson: Lesson


class SpeculativeStep:
    """Runs a schedule: the drafter proposes, one packed target pass scores, verification decides, sequences commit.

    Until the commit nothing of a sequence has changed but cache rows past its end and ``num_draft_computed``, which the
    drafter corrects before it drafts again, so a step that fails (out of memory, say) can be repeated with a smaller
    batch.
    """

    def __init__(self, target: ModelRunner, speculator: Speculator, vocab_size: int) -> None:
        self._target = target
        self._pass = TargetPass(target, vocab_size)
        self._speculator = speculator
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
        scores = self._pass.score(schedule, speculation.proposal.drafts, speculation.awaited)
        scored = time.perf_counter()
        download = None if scores.logits is None else self._pass.download(scores)
        if speculation.awaited is not None:
            speculation = self._speculator.receive(speculation, [] if download is None else download.draft_ids)
            for emitter, draft in zip(scores.emitters, speculation.proposal.drafts, strict=False):
                emitter.draft = draft
        verdicts = self._verify(scores.emitters, download, speculation.proposal.draft_probs)
        emissions, not_finite = self._commit(schedule, scores.emitters, verdicts)
        # A step without logits is only started: an asynchronous device computes it while the next one is planned.
        self._is_idle = scores.logits is not None or self._target.is_synchronous
        has_own_time = self._is_idle and (is_idle or speculation.has_waited)
        ended = time.perf_counter()
        # The decodes are the first emitters.
        decided = verdicts[: len(schedule.decodes)]
        lesson = Lesson(
            decodes=schedule.decodes,
            speculation=speculation,
            num_accepted=tuple(None if verdict is None else verdict.num_accepted for verdict in decided),
            num_tokens=scores.num_tokens,
            seconds=ended - started - speculation.draft_seconds if has_own_time else None,
        )
        return StepOutcome(
            emissions=emissions,
            not_finite=not_finite,
            num_tokens=scores.num_tokens,
            draft_seconds=drafted - started,
            target_seconds=scored - drafted,
            attention_seconds=self._target.take_attention_seconds(),
            verify_seconds=ended - scored,
            lesson=lesson,
        )

    def learn(self, outcome: StepOutcome) -> None:
        """Learn costs and acceptance from a step whose outcome has been dealt with.

        Learning only affects speed. The step is committed by now, so a failure is logged, and nothing is learned from
        then on.
        """
        if not self._learns:
            return
        try:
            self._speculator.learn(outcome.lesson)
        except Exception:
            logger.exception("learning from a step failed; costs and acceptance stay as they are")
            self._learns = False

    def clear_blocks(self, blocks: SequenceOf[int]) -> None:
        """Set cache blocks of target and draft back to zero."""
        self._target.cache.clear(blocks)
        self._speculator.clear_blocks(blocks)

    def _verify(
        self, emitters: list[Emitter], download: Download | None, draft_probs: torch.Tensor | None
    ) -> list[Verdict | None]:
        """Decide per emitter; None for a row whose logits are not finite."""
        if download is None:
            return []
        finite = torch.isfinite(download.maxima).tolist()
        processed = [emitter for emitter in emitters if not emitter.is_greedy]
        processed_verdicts = iter(self._verify_on_host(processed, download.processed, draft_probs) if processed else ())
        verdicts: list[Verdict | None] = []
        for emitter in emitters:
            if emitter.is_greedy:
                ids = download.ids[emitter.rows.start : emitter.rows.stop]
                verdicts.append(_if_finite(verify_greedy(ids, emitter.draft.token_ids), emitter, finite))
            else:
                verdicts.append(next(processed_verdicts))
        return verdicts

    def _verify_on_host(
        self, emitters: list[Emitter], host: torch.Tensor, draft_probs: torch.Tensor | None
    ) -> list[Verdict | None]:
        # [num_rows, 1]
        row_is_finite = torch.isfinite(host.max(dim=1, keepdim=True).values)
        finite = row_is_finite[:, 0].tolist()
        host = torch.where(row_is_finite, host, 0.0)
        verdicts: list[Verdict | None] = [None] * len(emitters)
        sampled: list[int] = []
        for index, emitter in enumerate(emitters):
            params = emitter.sequence.params
            if params.has_penalties:
                self._penalise(emitter, host)
            if params.is_greedy:
                ids = host[emitter.rows.start : emitter.rows.stop].argmax(dim=1).tolist()
                verdicts[index] = verify_greedy(ids, emitter.draft.token_ids)
            else:
                sampled.append(index)
        if sampled:
            chosen = [emitters[index] for index in sampled]
            for index, verdict in zip(sampled, _verify_sampled(chosen, host, draft_probs), strict=True):
                verdicts[index] = verdict
        return [_if_finite(verdict, e, finite) for verdict, e in zip(verdicts, emitters, strict=True)]

    def _penalise(self, emitter: Emitter, host: torch.Tensor) -> None:
        """Each position is penalised for the drafts before it as if they stood: they do, if it is ever reached."""
        sequence = emitter.sequence
        prompt_ids = sequence.token_ids[: sequence.num_prompt_tokens]
        output_ids = sequence.output_token_ids
        for position, row in enumerate(emitter.rows):
            seen = [*output_ids, *emitter.draft.token_ids[:position]]
            host[row] = apply_penalties(host[row], sequence.params, prompt_ids, seen)

    def _commit(
        self, schedule: Schedule, emitters: list[Emitter], verdicts: list[Verdict | None]
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
            sequence.draft_tokens += emitter.draft.depth
            sequence.accepted_tokens += verdict.num_accepted
            appended = sequence.commit(verdict.token_ids, now)
            # All but the last token have keys and values: the accepted drafts were computed as they were verified.
            sequence.num_computed = len(sequence) - 1
            emissions.append(Emission(sequence, tuple(appended), emitter.draft.depth, verdict.num_accepted))
        return tuple(emissions), tuple(not_finite)


def _if_finite(verdict: Verdict | None, emitter: Emitter, finite: SequenceOf[bool]) -> Verdict | None:
    """A verdict counts if every row it rests on was finite; rows behind a rejected draft token may be anything."""
    if verdict is None:
        return None
    rows = finite[emitter.first_row : emitter.first_row + verdict.num_accepted + 1]
    return verdict if all(rows) else None


def _verify_sampled(emitters: list[Emitter], host: torch.Tensor, draft_probs: torch.Tensor | None) -> list[Verdict]:
    """Process the sampled rows and verify them together."""
    picked: list[int] = []
    params = []
    rows = []
    for emitter in emitters:
        sequence, depth = emitter.sequence, emitter.draft.depth
        start, seed = len(sequence), sequence.request.seed
        rows.append(
            SampledRow(
                draft_ids=emitter.draft.token_ids,
                first_row=len(picked),
                first_draft_row=emitter.draft.first_row,
                accept_uniforms=[uniform(seed, start + i, Purpose.ACCEPT) for i in range(depth)],
                final_uniforms=[uniform(seed, start + i, Purpose.FINAL) for i in range(depth + 1)],
            )
        )
        picked.extend(emitter.rows)
        params.extend([sequence.params] * (depth + 1))
    return verify_sampled(rows, processed_probs(host[picked], params), draft_probs)
