"""Sequence: one choice of a request while the engine holds it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from helix_jobs.bounds import MAX_PRIORITY
from helix_jobs.engine.request import FinishReason, GenerationResult, RequestState
from helix_jobs.engine.schedule.logprob_record import LogprobRecord

if TYPE_CHECKING:
    from collections.abc import Sequence as SequenceOf

    from helix_jobs.engine.request import EncodedRequest
    from helix_jobs.engine.sampling.logits_processors import LogitsProcessor
    from helix_jobs.engine.sampling.logprobs import LogprobRows
    from helix_jobs.engine.sampling.output_grammar import OutputGrammar
    from helix_jobs.engine.schedule.block_table import BlockTable
    from helix_jobs.engine.schedule.state_table import StateTable
    from helix_jobs.engine.state_span import StateSpan
    from helix_jobs.errors import RequestError


class Sequence:
    """Tokens, cache positions and timings of one choice of a request.

    ``token_ids`` is prompt plus accepted output; unverified tokens never enter it. ``num_computed`` counts the leading
    tokens whose keys and values are in the target's cache, ``num_draft_computed`` those in the draft's cache.
    ``num_verified`` counts the leading tokens from which finite logits were computed: only their blocks are shared with
    other sequences. A decoding sequence has exactly one token not yet computed: its last.

    Args:
        request: The request it answers.
        table: Its blocks.
        stop_token_ids: Tokens that end the output.
        max_len: The model's limit on prompt plus output tokens.
        processors: The processors of its logits.
        grammar: Holds the output to a grammar, after them; None for any output.
        may_draft: Whether any drafter may draft for it.
        states: Its states in the target's recurrent layers; None for a target without them.
        draft_states: The same for the draft model.
        adapter: The target's adapter that computes it, counted from 1; 0 for the target itself.
        original_context: Tokens behind which the target computes all of a sequence in another way (LongRoPE); None for
            a target that does not.
    """

    def __init__(
        self,
        request: EncodedRequest,
        table: BlockTable,
        stop_token_ids: frozenset[int],
        max_len: int,
        processors: tuple[LogitsProcessor, ...] = (),
        *,
        grammar: OutputGrammar | None = None,
        may_draft: bool = True,
        states: StateTable | None = None,
        draft_states: StateTable | None = None,
        adapter: int = 0,
        original_context: int | None = None,
    ) -> None:
        assert request.prompt_token_ids, "requests are encoded before they are queued"
        self.request = request
        self.params = request.sampling_params
        self.request_id = request.request_id
        self.choice = request.choice
        self.priority = request.priority
        # Whether a person waits for its answer.
        self.is_urgent = request.priority > MAX_PRIORITY
        self.stop_token_ids = stop_token_ids
        # Those that stay in the output, at its end.
        self.kept_stop_ids = frozenset(self.params.stop_token_ids if self.params.include_stop_str_in_output else ())
        # A greedy sequence needs no mask, mostly: see ``OutputGrammar.choose``.
        self.processors = processors if grammar is None or self.params.is_greedy else (*processors, grammar)
        self.grammar = grammar
        self.may_draft = may_draft
        self.adapter = adapter
        # The log probabilities of its output, and of its prompt from the first scored token on; None: not asked for.
        # Those of the prompt stand with the first choice and belong to all.
        alternatives, prompt_alternatives = self.params.logprobs, self.params.prompt_alternatives
        self.logprobs = None if alternatives is None else LogprobRecord(alternatives)
        is_first = request.choice == 0
        self.prompt_logprobs = (
            LogprobRecord(prompt_alternatives) if prompt_alternatives is not None and is_first else None
        )
        # Whether each of its tokens is the argmax of the model's logits: the host then does not choose it.
        keeps_argmax = grammar is None and all(one.keeps_argmax for one in processors)
        self.takes_argmax = self.params.is_greedy and keeps_argmax
        self.table = table
        self.states = states
        self.draft_states = draft_states
        self.token_ids: list[int] = list(request.prompt_token_ids)
        self.num_prompt_tokens = len(self.token_ids)
        self._original_context = original_context
        # What it adds to the engine's count of prompt tokens: all its prompt, which a request's choices share.
        counted = self.num_prompt_tokens if request.num_counted is None else request.num_counted
        self.num_counted_prompt_tokens = counted if request.choice == 0 else 0
        if states is not None:
            # Another choice, and a request that asks the same again, begin there; the other options that are scored
            # behind the same prompt begin at its end.
            begins = request.first_scored if request.first_scored > 1 else self.num_prompt_tokens
            states.want_snapshot(begins - 1)
        # Where the output must end: its own limit or the model's context, whichever comes first.
        self.max_len = min(max_len, self.num_prompt_tokens + self.params.max_tokens)
        self.num_computed = 0
        self.num_draft_computed = 0
        self.num_verified = 0
        self.state = RequestState.WAITING
        self.finish_reason: FinishReason | None = None
        self.error: RequestError | None = None
        # The text before the stop string that ended the output, if one did.
        self.stopped_text: str | None = None

        # Its logits were not finite, so it is computed again from clean blocks and without a draft.
        self.was_recomputed = False
        # How often it failed alone in a step, and how many steps of the engine had passed at the last failure.
        self.lone_failures = 0
        self.failed_alone_at: int | None = None

        # How often it was passed over while it waited, see ``admission``, and displaced, see ``precedence``.
        self.num_overtaken = self.num_deferred = self.num_displaced = 0

        self.cached_prompt_tokens = 0
        self.draft_tokens = 0
        self.accepted_tokens = 0
        self.target_steps = 0
        self.added_at = time.monotonic()
        self.admitted_at: float | None = None
        self.first_token_at: float | None = None
        self.last_token_at: float | None = None

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def output_token_ids(self) -> list[int]:
        """The accepted output so far."""
        return self.token_ids[self.num_prompt_tokens :]

    @property
    def num_output_tokens(self) -> int:
        """Length of the output so far."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_prefill_tokens(self) -> int:
        """Tokens still to be computed before this sequence decodes.

        A fresh prompt is computed whole, and its last position yields the first output token. A preempted sequence is
        computed up to its last token and then decodes on from the state in which it was preempted. Depth and random
        numbers of each position stay the same, and so does the output.
        """
        end = len(self.token_ids) if self.num_output_tokens == 0 else len(self.token_ids) - 1
        return max(0, end - self.num_computed)

    @property
    def wants_output(self) -> bool:
        """Whether tokens are to follow the prompt; otherwise only the prompt is scored."""
        return self.params.max_tokens > 0

    @property
    def wants_drafts(self) -> bool:
        """Whether anything may be drafted for it."""
        return self.may_draft and self.wants_output

    def unscored(self, end: int) -> range:
        """Positions before ``end`` whose logits its prompt's log probabilities need: each tells of the next token."""
        if self.prompt_logprobs is None:
            return range(0)
        first = self.request.first_scored - 1 + len(self.prompt_logprobs)
        return range(first, max(first, min(end, self.num_prompt_tokens - 1)))

    @property
    def num_shareable(self) -> int:
        """How many of its first tokens it may begin with from the prefix cache; the others it computes itself.

        At least its last known token is always computed, as are positions whose log probabilities are still wanted.
        """
        if self.was_recomputed:  # it must be computed from clean blocks only
            return 0
        last = len(self.token_ids) - 1
        unscored = self.unscored(last)
        return unscored.start if unscored else last

    def max_depth(self, depth: int) -> int:
        """Most draft tokens that can still be used and have room beside the target's own token.

        Depends only on the sequence and constants, see ``Scheduler``.
        """
        # A draft token's NaN would reach the rows before it through its masked key.
        if self.was_recomputed or not self.may_draft:
            return 0
        length = len(self.token_ids)
        room = min(self.max_len - length - 1, self.table.pool_capacity - length)
        if self._original_context is not None and not self.table.is_long:
            room = min(room, self._original_context - length)
        return max(0, min(depth, room))

    @property
    def has_outgrown(self) -> bool:
        """Whether its tokens are computed as those of a shorter sequence than it is now."""
        return self._original_context is not None and len(self) > self._original_context and not self.table.is_long

    def commit(self, token_ids: SequenceOf[int], now: float) -> list[int]:
        """Append verified tokens until one ends the output; a stop token is appended only if the request keeps it.

        Returns:
            The tokens that were appended.
        """
        appended: list[int] = []
        for token_id in token_ids:
            if is_end := token_id in self.stop_token_ids:
                self.finish(FinishReason.STOP)
                if token_id not in self.kept_stop_ids:
                    break
            self.token_ids.append(token_id)
            appended.append(token_id)
            if is_end:
                break
            if len(self.token_ids) >= self.max_len:
                self.finish(FinishReason.LENGTH)
                break
        # The logits of these tokens are finite and attended to every key before them.
        self.num_verified = len(self.token_ids) - 1
        self.target_steps += 1
        if appended:
            self.first_token_at = self.first_token_at or now
            self.last_token_at = now
        return appended

    def note_logprobs(self, rows: LogprobRows, num_appended: int) -> None:
        """Keep the log probabilities of the tokens that the last ``commit`` appended.

        With ``echo``, the stop token behind them counts as well, as OpenAI's API has it: a reader of a loglikelihood
        (lm-evaluation-harness) asks for one new token and leaves out the last of all, whichever that was.
        """
        assert self.logprobs is not None, "they were asked for"
        num_tokens = num_appended
        if self.params.echo and self.finish_reason is FinishReason.STOP:
            was_kept = num_appended > 0 and self.token_ids[-1] in self.kept_stop_ids
            num_tokens += not was_kept
        self.logprobs.extend(rows, num_tokens)

    def note_prompt_logprobs(self, rows: LogprobRows, count: int) -> None:
        """Keep the log probabilities of the next ``count`` prompt tokens, computed from finite logits."""
        assert self.prompt_logprobs is not None, "they were asked for"
        self.prompt_logprobs.extend(rows, count)
        # The last of these positions attended to every key before it.
        self.num_verified = max(self.num_verified, self.request.first_scored - 1 + len(self.prompt_logprobs))

    def truncate_output(self, num_output_tokens: int) -> None:
        """Forget output tokens past ``num_output_tokens``, where a stop string ended the output."""
        del self.token_ids[self.num_prompt_tokens + num_output_tokens :]
        if self.logprobs is not None:
            self.logprobs.truncate(num_output_tokens)

    def finish(self, reason: FinishReason) -> None:
        """End with a reason."""
        self.state = RequestState.FINISHED
        self.finish_reason = reason

    def fail(self, error: RequestError) -> None:
        """End with an error of this request alone."""
        self.state = RequestState.FINISHED
        self.finish_reason = None
        self.error = error

    def num_cached_blocks(self) -> int:
        """How many cached blocks this waiting sequence could begin behind, see ``num_shareable``."""
        if self.was_recomputed:
            return 0
        count = self.table.longest_cached(self.token_ids, self.num_shareable, for_draft=self.wants_drafts)
        if self.states is None:
            return count
        # Recurrent layers can begin only where a state was kept, and layers with a window where what they see is.
        while (kept := self.states.longest(self.table.prefixes[:count])) < count:
            most = kept * self.table.block_size
            count = self.table.longest_cached(self.token_ids, most, for_draft=self.wants_drafts)
        return count

    def share(self, num_blocks: int) -> None:
        """Begin behind as many blocks as ``num_cached_blocks`` found instead of computing them."""
        self.table.share(num_blocks)
        if self.states is not None:
            self.states.share(self.table.prefixes[:num_blocks])
        self.num_computed = self.table.capacity
        self.note_draft_computed(0)

    def note_draft_computed(self, num_tokens: int) -> None:
        """Note that the draft's cache holds the first ``num_tokens`` tokens, all accepted; others may have filled more.

        Trade-off: a draft with recurrent layers computes every token of a sequence itself. It has no snapshots: they
        would save time, and take memory from the target's.
        """
        filled = self.table.mark_draft_filled(num_tokens)
        self.num_draft_computed = filled if self.draft_states is None else num_tokens

    def begin_states(self, end: int) -> StateSpan | None:
        """Plan the target's states of a step up to the verified token before ``end``; None without recurrent layers."""
        return None if self.states is None else self.states.begin(self.num_computed, end)

    def settle(self) -> None:
        """Between two steps, share verified full blocks and forget the draft's cache rows of rejected tokens.

        Trade-off: a long prompt is shared only once its last chunk has yielded finite logits, not chunk by chunk; in
        return a NaN never spreads through the prefix cache.
        """
        length = len(self.token_ids)
        self.table.freeze(self.token_ids, min(self.num_verified, length))
        self.note_draft_computed(max(0, min(self.num_draft_computed, length - 1)))
        if self.states is not None:
            self.states.settle(self.num_computed)
            self.states.publish(self.table.prefixes, min(self.num_verified, length))
        if self.table.frees:
            self.table.free_unseen(self._seen_from)

    @property
    def _seen_from(self) -> int:
        """The earliest position from which tokens are yet to be computed, or whose blocks are not shared yet."""
        position = min(self.num_verified, self.num_computed)
        return min(position, self.num_draft_computed) if self._awaits_draft else position

    @property
    def _awaits_draft(self) -> bool:
        """Whether blocks are kept for the draft model."""
        return self.table.follows_draft and self.wants_drafts and not self.is_draft_cut

    @property
    def is_draft_cut(self) -> bool:
        """Whether the draft model would need freed blocks to catch up: then it drafts no more for this sequence."""
        return self.table.follows_draft and not self.table.sees_all(self.num_draft_computed)

    def unneeded_blocks(self) -> list[int]:
        """The blocks that it keeps only for others, to share once they are verified, or for a draft far behind.

        A draft that is at most a block behind is not far: it is so after each step that accepts every draft token.
        """
        return self.table.unseen_blocks(self._needed_from) if self.table.frees else []

    def give_up_unneeded(self, *, draft_too: bool = False) -> bool:
        """Free its unneeded blocks; whether there were any.

        Args:
            draft_too: Give up those as well that a draft needs which is not far behind.
        """
        return self.table.frees and self.table.free_unseen(self.num_computed if draft_too else self._needed_from)

    @property
    def _needed_from(self) -> int:
        """The earliest position from which the target, or a draft that is not far behind, has yet to compute tokens."""
        lag = self.num_computed - self.num_draft_computed
        return self.num_draft_computed if self._awaits_draft and 0 < lag <= self.table.block_size else self.num_computed

    def reset_cache(self, *, discard: bool = False) -> None:
        """Give the blocks back and forget what was computed, on preemption or at the end.

        Args:
            discard: Do not trust the blocks: no sequence may share them any more.
        """
        for states in (self.states, self.draft_states):
            if states is not None:
                states.release(self.table.prefixes if discard else ())
        self.table.release(discard=discard)
        self.num_computed = 0
        self.num_draft_computed = 0
        self.num_verified = 0
        if self.has_outgrown:
            self.table.begin_long()

    def result(self, output_text: str) -> GenerationResult:
        """The immutable result of this request."""
        now = time.monotonic()
        admitted = now if self.admitted_at is None else self.admitted_at
        first, last = self.first_token_at, self.last_token_at
        return GenerationResult(
            request_id=self.request_id,
            output_text=output_text,
            output_token_ids=tuple(self.output_token_ids),
            finish_reason=self.finish_reason,
            error=self.error,
            prompt_tokens=self.num_prompt_tokens,
            cached_prompt_tokens=self.cached_prompt_tokens,
            queue_seconds=admitted - self.added_at,
            ttft_seconds=None if first is None else first - admitted,
            decode_seconds=0.0 if first is None or last is None else last - first,
            total_seconds=now - admitted,
            draft_tokens=self.draft_tokens,
            accepted_tokens=self.accepted_tokens,
            target_steps=self.target_steps,
            dropped_prompt_tokens=self.request.dropped_prompt_tokens,
            choice=self.choice,
            adapter=self.request.adapter,
        )
