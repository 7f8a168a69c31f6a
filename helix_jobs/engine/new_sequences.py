"""NewSequences: makes the sequences of a request, one for each choice, with the processors and watches they need."""

from __future__ import annotations

from typing import TYPE_CHECKING

from helix_jobs.engine.sampling.logits_processors import processors_of
from helix_jobs.engine.sampling.output_grammar import OutputGrammar
from helix_jobs.engine.sampling.reasoning_budget import budget_of
from helix_jobs.engine.schedule.block_table import BlockTable
from helix_jobs.engine.schedule.sequence import Sequence
from helix_jobs.engine.schedule.state_table import StateTable
from helix_jobs.engine.text.stop_strings import StopStringWatch
from helix_jobs.errors import InvalidRequestError, OutOfMemoryError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from collections.abc import Sequence as SequenceOf

    from helix_jobs.engine.loaded_models import LoadedAdapter
    from helix_jobs.engine.protocol import EngineInfo
    from helix_jobs.engine.request import EncodedRequest
    from helix_jobs.engine.request_encoding import RequestEncoding
    from helix_jobs.engine.sampling.mask_worker import MaskWorker
    from helix_jobs.engine.schedule.block_pool import BlockPool
    from helix_jobs.engine.schedule.state_pool import StatePool
    from helix_jobs.engine.text.codec import TextCodec


class NewSequences:
    """Makes sequences for one engine.

    Args:
        codec: Decodes outputs.
        encoding: Knows a request's stop tokens.
        pool: Where the sequences' blocks come from.
        states: Where their states in the target come from, and those in the draft; None for a model without states.
        info: The engine, for its limit on prompt plus output tokens.
        vocab_size: The logits have this many columns.
        masks: Computes the masks of grammars.
        drafts_any: Whether drafters may draft for any sequence; otherwise only for those with a grammar.
        adapters: The target's.
        original_context: See ``Sequence``.
    """

    def __init__(
        self,
        codec: TextCodec,
        encoding: RequestEncoding,
        pool: BlockPool,
        states: tuple[StatePool | None, StatePool | None],
        info: EngineInfo,
        *,
        vocab_size: int,
        masks: MaskWorker,
        drafts_any: bool,
        adapters: SequenceOf[LoadedAdapter] = (),
        original_context: int | None = None,
    ) -> None:
        self._codec = codec
        self._encoding = encoding
        self._pool = pool
        self._states = states
        self._info = info
        self._vocab_size = vocab_size
        self._masks = masks
        self._drafts_any = drafts_any
        self._original_context = original_context
        # The target counts them from 1.
        self._adapters = {one.name: (number, one.digest) for number, one in enumerate(adapters, 1)}

    def of(self, choices: SequenceOf[EncodedRequest]) -> tuple[list[Sequence], dict[str, StopStringWatch]]:
        """The sequences of a request's choices, and the watch of each whose output may end at a stop string.

        A sequence that can never be served has already failed.

        Raises:
            InvalidRequestError: A stop text names a special token among others, the bad words were not encoded, or
                there is no such adapter.
        """
        request = choices[0]
        params = request.sampling_params
        if params.bad_words and not request.bad_words:
            raise InvalidRequestError("the request's bad_words were not encoded; let encode make the request")
        if request.adapter is not None and request.adapter not in self._adapters:
            raise InvalidRequestError("the request's adapter is not this engine's; let encode make the request")
        stop_ids = self._encoding.stop_ids(params, is_chat=request.is_chat)
        sequences = [self._sequence(choice, stop_ids) for choice in choices]
        return sequences, self._watches(choices) if params.stop else {}

    def _sequence(self, request: EncodedRequest, stop_ids: frozenset[int]) -> Sequence:
        # Each choice has processors of its own.
        processors = (
            *processors_of(
                request.sampling_params,
                request.prompt_token_ids,
                bad_words=request.bad_words,
                end_ids=[token_id for token_id in stop_ids if token_id < self._vocab_size],
            ),
            *budget_of(request),
        )
        grammar: OutputGrammar | None = None
        if request.grammar is not None:
            reasoning = None if request.grammar_has_thinking else request.reasoning
            grammar = OutputGrammar(request.grammar, self._masks, stop_ids, reasoning)
        states, draft_states = (
            None if pool is None else StateTable(pool, self._pool.block_size) for pool in self._states
        )
        number, digest = (0, None) if request.adapter is None else self._adapters[request.adapter]
        original = self._original_context
        sequence = Sequence(
            request,
            BlockTable(self._pool, digest, is_long=original is not None and len(request.prompt_token_ids) > original),
            stop_ids,
            self._info.max_model_len,
            processors,
            grammar=grammar,
            may_draft=self._drafts_any or grammar is not None,
            states=states,
            draft_states=draft_states,
            adapter=number,
            original_context=original,
        )
        if len(sequence) >= self._info.max_model_len:
            # ``encode`` refuses such a prompt; another engine with a longer context may have encoded it.
            sequence.fail(self._encoding.too_long(request.prompt_token_ids))
        elif len(sequence) >= sequence.table.pool_capacity:
            sequence.fail(
                OutOfMemoryError(
                    f"the prompt has {len(sequence)} tokens and the KV cache holds {sequence.table.pool_capacity}, "
                    "one new token included; raise HELIX_KV_CACHE_MB or shorten the prompt"
                )
            )
        return sequence

    def _watches(self, choices: Iterable[EncodedRequest]) -> dict[str, StopStringWatch]:
        return {
            choice.request_id: StopStringWatch(
                self._codec,
                choice.sampling_params.stop,
                self._codec.context(choice.prompt_token_ids),
                is_chat=choice.is_chat and not choice.continues,
                min_tokens=choice.sampling_params.min_tokens,
                keeps_stop=choice.sampling_params.include_stop_str_in_output,
            )
            for choice in choices
        }
