"""One step of batched speculation: draft, verify, commit, roll back."""

from __future__ import annotations

import itertools
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from helix_jobs.engine.request import FinishReason
from helix_jobs.engine.sampling.logits_processors import shape_logits
from helix_jobs.engine.sampling.logprobs import token_logprobs
from helix_jobs.engine.sampling.random_numbers import Purpose, uniform
from helix_jobs.engine.sampling.sampler import argmax_of_rows, processed_probs
from helix_jobs.engine.sampling.verification import SampledRow, Verdict, verify_greedy, verify_sampled
from helix_jobs.engine.speculation.target_pass import TargetPass
from helix_jobs.engine.speculation.turn import turns_of

if TYPE_CHECKING:
    from collections.abc import Collection
    from collections.abc import Sequence as SequenceOf

    from helix_jobs.engine.model.runner import ModelRunner
    from helix_jobs.engine.sampling.mask_worker import MaskWorker
    from helix_jobs.engine.sampling.output_grammar import OutputGrammar, PositionMasks
    from helix_jobs.engine.schedule.sequence import Sequence
    from helix_jobs.engine.schedule.step_plan import Schedule
    from helix_jobs.engine.speculation.drafters.protocol import Proposal
    from helix_jobs.engine.speculation.speculator import Speculator
    from helix_jobs.engine.speculation.target_pass import Download
    from helix_jobs.engine.speculation.turn import Turn

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Emission:
    """The tokens one sequence emitted in a step, and how many of its draft tokens were accepted.

    ``num_forced``: how many of its first draft tokens its grammar forced.
    """

    sequence: Sequence
    token_ids: tuple[int, ...]
    num_drafted: int
    num_accepted: int
    num_forced: int = 0


@dataclass(frozen=True, slots=True)
class Lesson:
    """A step's verdicts and times, to learn from.

    Attributes:
        turns: The turns of its sequences, with their verdicts.
        proposal: The drafters' proposal.
        num_tokens: Tokens the target computed.
        draft_seconds: Time of the draft model's passes; None where the device had other work at the same time.
        seconds: Time of the rest of the step, awaited drafts included; None where that cannot be told.
    """

    turns: SequenceOf[Turn]
    proposal: Proposal
    num_tokens: int
    draft_seconds: float | None
    seconds: float | None


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """What a step emitted, and how long its parts took.

    Attributes:
        emissions: One for each sequence that was due to emit and did.
        not_finite: Sequences whose logits held NaN or infinity; none of their tokens was committed.
        masked: Sequences whose processors masked every token of the next position; nothing was committed.
        num_tokens: Tokens the target computed.
        draft_seconds: Time spent on drafting, the choice of depths included. Where drafts are awaited on the device
            (see ``AwaitedDrafts``), the time to plan them.
        target_seconds: Time of the target's pass. On an asynchronous device, the time to start it.
        attention_seconds: The part of ``target_seconds`` spent in attention.
        verify_seconds: Time of verification and commit, and of waiting for an asynchronous device.
        lesson: For ``SpeculativeStep.learn``.
    """

    emissions: tuple[Emission, ...]
    not_finite: tuple[Sequence, ...]
    masked: tuple[Sequence, ...]
    num_tokens: int
    draft_seconds: float
    target_seconds: float
    attention_seconds: float
    verify_seconds: float
    lesson: Lesson


class SpeculativeStep:
    """Runs a schedule: drafts are proposed, one packed target pass scores, verification decides, sequences commit.

    Drafts are what a grammar forces and, behind it, what the drafters propose (see ``Speculator``).

    Before the commit a step changes only these of a sequence: its cache rows past its end; ``num_draft_computed``,
    which the drafter corrects before it drafts again; and, in recurrent layers, states beside its checkpoint, which the
    next step drops (see ``StateTable``). A step that fails (out of memory, say) can therefore be repeated with a
    smaller batch.
    """

    def __init__(self, target: ModelRunner, speculator: Speculator, vocab_size: int, masks: MaskWorker) -> None:
        self._target = target
        self._pass = TargetPass(target, vocab_size)
        self._speculator = speculator
        self._masks = masks
        self._learns = True
        # Whether the device was idle when the last step ended: then the next step's time includes no other work.
        self._is_idle = True

    @torch.no_grad()  # never inference_mode: DirectML tensors cannot live in it
    def run(self, schedule: Schedule) -> StepOutcome:
        """Compute one step and commit it. Stop tokens are applied here, stop strings by the caller."""
        is_idle, self._is_idle = self._is_idle, False
        started = time.perf_counter()
        turns = turns_of(schedule)
        proposal = self._speculator.speculate(turns)
        # Reset the clock: passes that measured costs, or a failed step, may have run on it.
        self._target.take_attention_seconds()
        drafted = time.perf_counter()
        self._masks.start(_mask_jobs(turns))
        try:
            scores = self._pass.score(turns, proposal.awaited)
            scored = time.perf_counter()
            download = None if scores.logits is None else self._pass.download(scores)
        finally:
            self._masks.finish()
        if proposal.awaited is not None:
            proposal.awaited.receive([] if download is None else download.draft_ids)
        if download is not None:
            self._verify([turn for turn in turns if turn.emits], download, proposal.draft_probs)
            _take_logprobs(turns, download)
        emissions, not_finite, masked = self._commit(turns)
        # A step without logits is only started: an asynchronous device computes it while the next step is planned.
        self._is_idle = scores.logits is not None or self._target.is_synchronous
        # Rows of prompts take time that the costs of other steps do not have.
        has_own_time = self._is_idle and (is_idle or proposal.has_waited) and not scores.num_scored
        ended = time.perf_counter()
        lesson = Lesson(
            turns=turns,
            proposal=proposal,
            num_tokens=scores.num_tokens,
            draft_seconds=proposal.seconds if is_idle and proposal.has_waited else None,
            seconds=ended - started - proposal.seconds if has_own_time else None,
        )
        return StepOutcome(
            emissions=emissions,
            not_finite=not_finite,
            masked=masked,
            num_tokens=scores.num_tokens,
            draft_seconds=drafted - started,
            target_seconds=scored - drafted,
            attention_seconds=self._target.take_attention_seconds(),
            verify_seconds=ended - scored,
            lesson=lesson,
        )

    def learn(self, outcome: StepOutcome) -> None:
        """Learn costs and acceptance from a step, after its outcome has been handled.

        Learning affects only speed, and the step is already committed. A failure is therefore logged, and learning
        stops for good.
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

    def _verify(self, turns: list[Turn], download: Download, draft_probs: torch.Tensor | None) -> None:
        """Give each turn its verdict; none where logits are not finite."""
        finite = torch.isfinite(download.maxima).tolist()
        processed: list[Turn] = []
        for turn in turns:
            if turn.is_greedy:
                ids = download.ids[turn.rows.start : turn.rows.stop]
                _decide(turn, verify_greedy(ids, turn.draft_ids), finite)
            else:
                processed.append(turn)
        if processed:
            self._verify_on_host(processed, download.processed, draft_probs)

    def _verify_on_host(self, turns: list[Turn], logits: torch.Tensor, draft_probs: torch.Tensor | None) -> None:
        # [num_rows, 1]
        row_is_finite = torch.isfinite(logits.amax(dim=1, keepdim=True))
        finite = row_is_finite[:, 0].tolist()
        # Shaping changes the rows: those whose log probabilities are asked for are needed unchanged.
        is_kept = any(turn.sequence.logprobs is not None for turn in turns)
        host = torch.where(row_is_finite, logits, 0.0) if is_kept or not all(finite) else logits
        for turn in turns:
            if turn.sequence.processors:
                _shape(turn, host)
        greedy = [turn for turn in turns if turn.sequence.params.is_greedy]
        sampled = [turn for turn in turns if not turn.sequence.params.is_greedy]
        ids = argmax_of_rows(host) if greedy else []
        for turn in greedy:
            if turn.sequence.grammar is not None:
                _keep_to_grammar(turn, turn.sequence.grammar, host, ids)
        masked = _open_masked(host)
        for turn in greedy:
            verdict = verify_greedy(ids[turn.rows.start : turn.rows.stop], turn.draft_ids)
            _decide(turn, verdict, finite, masked)
        if sampled:
            for turn, verdict in zip(sampled, _verify_sampled(sampled, host, draft_probs), strict=True):
                _decide(turn, verdict, finite, masked)

    def _commit(self, turns: list[Turn]) -> tuple[tuple[Emission, ...], tuple[Sequence, ...], tuple[Sequence, ...]]:
        """Append what was decided; return the emissions, and the sequences that are not finite and that are masked."""
        now = time.monotonic()
        emissions: list[Emission] = []
        not_finite: list[Sequence] = []
        masked: list[Sequence] = []
        for turn in turns:
            sequence, verdict = turn.sequence, turn.verdict
            if not turn.is_decode:
                sequence.num_computed = turn.end
            if turn.scored:
                if turn.prompt_logprobs is None:
                    not_finite.append(sequence)
                    continue
                sequence.note_prompt_logprobs(turn.prompt_logprobs, len(turn.scored))
            if not turn.emits:
                if not sequence.wants_output and turn.end == len(sequence):
                    sequence.finish(FinishReason.LENGTH)
                continue
            if verdict is None:
                not_finite.append(sequence)
                continue
            if not verdict.token_ids:
                masked += [] if _ends_by_grammar(sequence, has_token=False) else [sequence]
                continue
            sequence.draft_tokens += turn.num_drafted
            sequence.accepted_tokens += verdict.num_accepted
            appended = sequence.commit(_before_needless_stop(sequence, verdict.token_ids), now)
            if turn.logprobs is not None:
                sequence.note_logprobs(turn.logprobs, len(appended))
            # All tokens but the last have keys and values: verification computed those of the accepted drafts.
            sequence.num_computed = len(sequence) - 1
            _ends_by_grammar(sequence, has_token=True)
            drafted, accepted = turn.num_drafted, verdict.num_accepted
            emissions.append(Emission(sequence, tuple(appended), drafted, accepted, len(turn.forced)))
        return tuple(emissions), tuple(not_finite), tuple(masked)


def _ends_by_grammar(sequence: Sequence, *, has_token: bool) -> bool:
    """End an output that its grammar calls whole where nothing may follow; whether it has ended.

    Args:
        sequence: The sequence, after its commit.
        has_token: Whether the step found a token. If not, all stop tokens are ignored or forbidden by the request, and
            the output ends wherever it may.
    """
    grammar = sequence.grammar
    if grammar is None:  # before the output is copied: most sequences have none
        return False
    output_ids = sequence.output_token_ids
    if not (grammar.is_complete(output_ids) if has_token else grammar.is_accepting(output_ids)):
        return False
    # Only a stop token could follow, which is not part of the output.
    sequence.finish(FinishReason.STOP)
    return True


def _before_needless_stop(sequence: Sequence, token_ids: SequenceOf[int]) -> SequenceOf[int]:
    """Decided tokens up to a stop token behind an output that is whole already, see ``_ends_by_grammar``.

    Only a draft makes the step decide about it. The output, and what is kept of its end, must not depend on that.
    """
    grammar = sequence.grammar
    if grammar is None:
        return token_ids
    before = list(itertools.takewhile(lambda token_id: token_id not in sequence.stop_token_ids, token_ids))
    is_needless = len(before) < len(token_ids) and grammar.is_complete([*sequence.output_token_ids, *before])
    return before if is_needless else token_ids


def _mask_jobs(turns: SequenceOf[Turn]) -> list[PositionMasks]:
    """The masks that verification will need, as far as the drafts are known. Greedy turns mostly need none."""
    return [
        turn.sequence.grammar.job(turn.sequence.output_token_ids, turn.draft_ids)
        for turn in turns
        if turn.emits and turn.sequence.grammar is not None and not turn.sequence.params.is_greedy
    ]


def _keep_to_grammar(turn: Turn, grammar: OutputGrammar, host: torch.Tensor, ids: list[int]) -> None:
    """Replace tokens of a greedy turn that its grammar does not allow, as far as its drafts are accepted.

    Args:
        turn: The turn.
        grammar: Its grammar.
        host: ``[num_rows, vocab_size]``, shaped by all processors but the grammar.
        ids: The most likely token of each row.
    """
    output_ids = turn.sequence.output_token_ids
    for row, draft_id in zip(turn.rows, (*turn.draft_ids, None), strict=True):
        ids[row] = grammar.choose(ids[row], host[row], output_ids)
        if ids[row] != draft_id:
            break
        output_ids.append(ids[row])


def _decide(turn: Turn, verdict: Verdict, finite: SequenceOf[bool], masked: Collection[int] = ()) -> None:
    """Set the verdict if every row it depends on was finite; rows behind a rejected draft token do not matter.

    A verdict ends before a row in which every token is masked. The accepted tokens before it may end the output, and
    only if they do not, the next step comes to that row first: then its verdict has no tokens.
    """
    first, num_rows = turn.first_row, verdict.num_accepted + 1
    if masked:
        num_open = next((place for place in range(num_rows) if first + place in masked), num_rows)
        if num_open < num_rows:
            num_rows, verdict = num_open, Verdict(num_open, verdict.token_ids[:num_open])
    if all(finite[first : first + num_rows]):
        turn.verdict = verdict


def _open_masked(host: torch.Tensor) -> set[int]:
    """Rows in which every token is masked; they are opened, so that a distribution can be made."""
    masked = torch.isneginf(host.amax(dim=1)).nonzero()[:, 0]
    host[masked] = 0.0
    return set(masked.tolist())


def _take_logprobs(turns: SequenceOf[Turn], download: Download) -> None:
    """Give turns the log probabilities they ask for, from the model's own logits: shaping has changed a copy."""
    for turn in turns:
        params = turn.sequence.params
        if turn.verdict is not None and params.logprobs is not None:
            token_ids = turn.verdict.token_ids
            rows = download.processed[turn.first_row : turn.first_row + len(token_ids)]
            turn.logprobs = token_logprobs(rows, token_ids, params.logprobs)
        if turn.scored and params.prompt_alternatives is not None:
            token_ids = tuple(turn.sequence.token_ids[turn.scored.start + 1 : turn.scored.stop + 1])
            rows = download.scored[turn.first_scored_row : turn.first_scored_row + len(token_ids)]
            if bool(torch.isfinite(rows.max(dim=1).values).all()):
                turn.prompt_logprobs = token_logprobs(rows, token_ids, params.prompt_alternatives)


def _shape(turn: Turn, host: torch.Tensor) -> None:
    """Shape each position as if the drafts before it were accepted; otherwise its logits are not used."""
    output_ids = turn.sequence.output_token_ids
    for position, row in enumerate(turn.rows):
        shape_logits(host[row], turn.sequence.processors, [*output_ids, *turn.draft_ids[:position]])


def _verify_sampled(turns: list[Turn], host: torch.Tensor, draft_probs: torch.Tensor | None) -> list[Verdict]:
    """Process the sampled rows and verify them together."""
    picked: list[int] = []
    params = []
    rows = []
    for turn in turns:
        sequence, depth = turn.sequence, turn.num_drafted
        start, seed = len(sequence), sequence.request.seed
        rows.append(
            SampledRow(
                draft_ids=turn.draft_ids,
                first_row=len(picked),
                first_draft_row=turn.draft.first_row,
                accept_uniforms=[uniform(seed, start + i, Purpose.ACCEPT) for i in range(depth)],
                final_uniforms=[uniform(seed, start + i, Purpose.FINAL) for i in range(depth + 1)],
                num_forced=len(turn.forced),
            )
        )
        picked.extend(turn.rows)
        params.extend([sequence.params] * (depth + 1))
    return verify_sampled(rows, processed_probs(host[picked], params), draft_probs)
