"""Engine: add_request, step, abort, generate."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from helix_jobs.engine.choice_scoring import ChoiceScorings
from helix_jobs.engine.choices import Choices, already_held
from helix_jobs.engine.devices.devices import cleanup_memory, explaining_shortage
from helix_jobs.engine.devices.energy import find_energy_meter
from helix_jobs.engine.engine_info import engine_info
from helix_jobs.engine.grammar.grammars import Grammars
from helix_jobs.engine.grammar.vocabulary import TokenTable
from helix_jobs.engine.model.step_memory import scored_rows
from helix_jobs.engine.new_sequences import NewSequences
from helix_jobs.engine.recovery import Recovery
from helix_jobs.engine.request import EncodedRequest, GenerationResult, Request
from helix_jobs.engine.request_encoding import RequestEncoding
from helix_jobs.engine.runners import Runners
from helix_jobs.engine.sampling.dead_end import no_token_left
from helix_jobs.engine.sampling.mask_worker import MaskWorker
from helix_jobs.engine.schedule.scheduler import Scheduler
from helix_jobs.engine.speculation.depth.controller import COPY_ACCEPTANCE, DEFAULT_ACCEPTANCE
from helix_jobs.engine.speculation.speculative import SpeculativeStep
from helix_jobs.engine.speculation.speculator import Speculator
from helix_jobs.engine.stats import StepStatistics
from helix_jobs.engine.text.codec import TextCodec
from helix_jobs.engine.text.final_result import final_result
from helix_jobs.engine.text.final_text import apply_stop_strings
from helix_jobs.engine.text.partial_text import UnfinishedOutput, unfinished_outputs
from helix_jobs.errors import EngineBrokenError, EngineError, RequestError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from collections.abc import Sequence as SequenceOf

    from helix_jobs.engine.config import CacheConfig, EngineConfig
    from helix_jobs.engine.loaded_models import LoadedModels
    from helix_jobs.engine.protocol import EngineCounters, EngineInfo
    from helix_jobs.engine.schedule.sequence import Sequence
    from helix_jobs.engine.schedule.step_plan import Schedule
    from helix_jobs.engine.speculation.depth.costs import CostProfile
    from helix_jobs.engine.speculation.speculative import Emission, StepOutcome
    from helix_jobs.engine.text.stop_strings import StopStringWatch

logger = logging.getLogger(__name__)


class Engine:
    """Continuously batched speculative decoding of requests (satisfies ``EngineProtocol``).

    One thread drives the engine; only ``encode`` may be called from other threads. Requests fail alone: the engine
    repeats a failed step with half the batch until the step passes or the one request that breaks it is found.

    Args:
        models: From ``model_loader.load_models``.
        config: Batch limits and speculation.
        cache: Size of the block pool, shared by target and draft.
        costs: What steps cost on this machine; None measures it now if depths are adaptive.

    Attributes:
        emitted: What the last step emitted. A stop string and the text after it are still included.

    Raises:
        InsufficientMemoryError: The block pool, or a full step beside it, does not fit.
    """

    def __init__(
        self, models: LoadedModels, config: EngineConfig, cache: CacheConfig, costs: CostProfile | None = None
    ) -> None:
        context = min(models.max_context, config.max_model_len or models.max_context)
        self._device = models.device
        self.energy = find_energy_meter(models.device)
        vocab_size = models.vocab_size
        self._codec = TextCodec(models.tokenizer, vocab_size, models.prompts, context - 1)
        ends = models.eos_token_ids | models.turn_end_ids
        self._chat_forms = models.chat_forms
        self._grammars = Grammars(lambda: TokenTable.of(models.tokenizer, vocab_size, ends))
        self._encoding = RequestEncoding(
            self._codec,
            context,
            models.eos_token_ids,
            models.turn_end_ids,
            grammars=self._grammars,
            chat_forms=models.chat_forms,
            adapters=frozenset(one.name for one in models.adapters),
        )
        runners = Runners.allocate(models, config, cache)
        remedy = "lower HELIX_KV_CACHE_MB or HELIX_MAX_BATCH_SIZE"
        with explaining_shortage(models.device, "the cost of steps was measured", remedy):
            self._speculator = Speculator.build(
                runners.target,
                runners.draft,
                config,
                vocab_size,
                costs=costs,
                initial_acceptance=COPY_ACCEPTANCE if models.draft and models.draft.is_copy else DEFAULT_ACCEPTANCE,
            )
        self._pool, self._states, self._draft_states = runners.blocks, runners.states, runners.draft_states
        self._masks = MaskWorker()
        self._scheduler = Scheduler(config, self._pool, scored_rows(vocab_size, config))
        self._step = SpeculativeStep(runners.target, self._speculator, vocab_size, self._masks)
        self.emitted: tuple[Emission, ...] = ()
        self._statistics = StepStatistics()
        self._choices = Choices()
        self._stop_watches: dict[str, StopStringWatch] = {}
        self._scorings = ChoiceScorings()
        self._recovery = Recovery(self._scheduler, models.device)
        # Raised by the next step, after this one has returned its results.
        self._fault: Exception | None = None
        self._info = engine_info(
            models,
            config,
            cache,
            context=context,
            drafts_any=self._speculator.drafts_any,
            kv_cache_bytes=runners.cache_bytes,
        )
        self._new_sequences = NewSequences(
            self._codec,
            self._encoding,
            self._pool,
            (self._states, self._draft_states),
            self._info,
            vocab_size=vocab_size,
            masks=self._masks,
            drafts_any=self._speculator.drafts_any,
            adapters=models.adapters,
            original_context=models.target.decoder.attention.spec.original_context,
        )

    @property
    def info(self) -> EngineInfo:
        """The loaded models, the device and the limits."""
        return self._info

    def encode(self, request: Request) -> EncodedRequest:
        """Tokenise a request's prompt and its bad words, and compile its constraint. Thread-safe.

        Raises:
            InvalidRequestError: The prompt or the messages cannot be encoded for this model, a sampling field does not
                fit it, ``max_tokens`` leaves no room for a truncated prompt, or the constraint cannot be kept.
            PromptTooLongError: No room is left in the context for one new token.
        """
        return self._encoding.encode(request)

    def add_request(self, request: EncodedRequest) -> None:
        """Queue a request. ``step`` returns its result or its error.

        Raises:
            InvalidRequestError: The request id is already in the engine; or, where ``encode`` has not made the request,
                a stop text names a special token among others, or its bad words were not encoded.
        """
        if request.request_id in self._scorings:
            raise already_held(request)
        self._begin(request if request.score_choices is None else self._scorings.add(request))

    def _begin(self, request: EncodedRequest) -> None:
        """Queue the sequences of an encoded request, one for each choice."""
        sequences, watches = self._new_sequences.of(self._choices.split(request))
        # Nothing below can fail: a sequence in ``_choices`` that the scheduler does not know would never end.
        self._choices.add(sequences)
        self._stop_watches.update(watches)
        for sequence in sequences:
            self._scheduler.add(sequence)

    def abort(self, request_id: str) -> None:
        """End all choices of a request with their outputs so far; the next ``step`` returns the result."""
        for sequence_id in (request_id, *self._scorings.live(request_id)):
            for sequence in self._choices.of(sequence_id):
                self._scheduler.abort(sequence)

    def has_unfinished(self) -> bool:
        """Whether another ``step`` has work to do or results to return."""
        return self._scheduler.has_unfinished() or self._recovery.has_suspects or self._fault is not None

    def step(self) -> list[GenerationResult]:
        """Run one step of the batch and return the results of the requests that ended.

        A step that fails (out of memory, a kernel's fault) is repeated with fewer prompt tokens or half the batch. A
        request ends with ``out_of_memory`` or ``engine_error`` if it fails alone, another step passes, and it fails
        alone again.

        Raises:
            EngineBrokenError: The device no longer computes, or several requests in a row fail alone while no step
                passes. As after the other error, the requests stay unfinished.
            OSError: The machine is exhausted (see ``exhaustion``).
        """
        if self._fault is not None:
            fault, self._fault = self._fault, None
            raise fault
        if not self._scheduler.has_unfinished():
            self._recovery.recall_suspects()
        ended = self._collect()
        try:
            self._advance()
        except Exception as fault:
            if not ended:
                raise
            self._fault = fault
            return ended
        return ended + self._collect()

    def generate(self, requests: Iterable[Request | EncodedRequest]) -> list[GenerationResult]:
        """Run requests to their end and return the results in the order of the requests."""
        order = []
        results: dict[str, GenerationResult] = {}
        for request in requests:
            order.append(request.request_id)
            try:
                encoded = self.encode(request) if isinstance(request, Request) else request
            except RequestError as error:
                results[request.request_id] = GenerationResult.refused(request.request_id, error)
            else:
                self.add_request(encoded)
        while self.has_unfinished():
            results.update((result.request_id, result) for result in self.step())
        return [results[request_id] for request_id in order]

    def running(self) -> list[str]:
        """Ids of the requests with a choice in the batch: admitted, and neither ended nor preempted."""
        return list(dict.fromkeys(map(self._scorings.owner, self._choices.request_ids(self._scheduler.active))))

    def partials(self) -> Iterator[UnfinishedOutput]:
        """The unfinished outputs that the last step has lengthened, of requests with a ``stream``."""
        return unfinished_outputs((one.sequence for one in self.emitted), self._codec, self._chat_forms)

    def counters(self) -> EngineCounters:
        """Totals since the engine was built."""
        return self._statistics.snapshot(
            peak_blocks=self._pool.peak_used,
            cached_prompt_tokens=self._scheduler.cached_prompt_tokens,
            preemptions=self._scheduler.preemptions,
            depth_reasons=self._speculator.reasons,
        )

    def cost_profile(self) -> CostProfile | None:
        """What steps cost at present; None with a fixed depth, which does not depend on it."""
        return self._speculator.cost_profile()

    def check_integrity(self) -> None:
        """Verify that the pools and the sequences agree. Without sequences, every block must be free.

        Raises:
            AssertionError: A bug in the engine.
        """
        self._pool.check_integrity(sequence.table for sequence in self._choices)
        if self._states is not None:
            self._states.check_integrity(s.states for s in self._choices if s.states is not None)
        if self._draft_states is not None:
            self._draft_states.check_integrity(s.draft_states for s in self._choices if s.draft_states is not None)

    def close(self) -> None:
        """Drop every request and free the models and the caches. Safe to repeat; the engine cannot be used again."""
        for sequence in self._choices:
            self._scheduler.abort(sequence)
            sequence.reset_cache()
        self._scheduler.drop_finished()
        self._recovery.forget_suspects()
        self._choices.clear()
        self._stop_watches.clear()
        self._scorings.clear()
        self._codec.close()
        self._masks.close()
        self._grammars.close()
        self.__dict__.pop("_step", None)
        try:
            cleanup_memory(self._device)
        except Exception:  # the device is gone; its memory is freed when the process ends
            logger.warning("the device does not take its memory back", exc_info=True)

    def _advance(self) -> None:
        """Schedule and compute a step; recover if it fails."""
        self.emitted = ()
        started = time.perf_counter()
        schedule = self._scheduler.schedule()
        self._statistics.schedule_seconds += time.perf_counter() - started
        if not schedule.num_sequences:
            return
        failure: Exception | None = None
        try:
            self._clean(schedule)
            outcome = self._step.run(schedule)
        except Exception as error:
            logger.warning("a step of %d requests failed", schedule.num_sequences, exc_info=error)
            # The traceback's frames hold the step's tensors; drop it before memory is cleaned up.
            failure = error.with_traceback(None)
        if failure is not None:
            self._recovery.recover(failure, schedule, self._statistics.steps)
            return
        self._account(schedule, outcome)
        self._quarantine(outcome.not_finite)
        for sequence in outcome.masked:
            of_grammar = None if sequence.grammar is None else sequence.grammar.error
            sequence.fail(of_grammar or no_token_left(sequence.request, sequence.num_output_tokens))
        self._step.learn(outcome)
        self._recovery.recall_suspects()

    def _account(self, schedule: Schedule, outcome: StepOutcome) -> None:
        """Apply stop strings and count tokens after a step that passed."""
        statistics = self._statistics
        statistics.add_step(schedule.num_sequences, len(schedule.decodes), outcome)
        self.emitted = outcome.emissions
        statistics.prompt_tokens += sum(
            one.sequence.num_counted_prompt_tokens for one in schedule.prefills if one.ends_prompt
        )
        for emission in outcome.emissions:
            num_new = len(emission.token_ids)
            watch = self._stop_watches.get(emission.sequence.request_id)
            if watch is not None and num_new:
                num_new -= apply_stop_strings(emission.sequence, watch, num_new)
            statistics.add_tokens(emission, num_new)
            emission.sequence.was_recomputed = False
            emission.sequence.lone_failures, emission.sequence.failed_alone_at = 0, None
        self._scheduler.step_passed()

    def _clean(self, schedule: Schedule) -> None:
        """Clear the blocks that the step begins for sequences which are computed again, see ``_quarantine``.

        Since blocks were cleared, sequences may have given up others whose numbers nobody had seen. Trade-off: if all
        sequences began cleared blocks, none would be computed twice for what another left, but every step would write
        more.
        """
        sequences = [*(one.sequence for one in schedule.decodes), *(one.sequence for one in schedule.prefills)]
        again = [one for one in sequences if one.was_recomputed]
        if blocks := [block for one in again for block in one.table.blocks_behind(one.num_computed)]:
            self._step.clear_blocks(blocks)

    def _quarantine(self, sequences: SequenceOf[Sequence]) -> None:
        """Keep NaN and infinity from spreading through reused blocks, after logits that were not finite.

        The request itself may have produced the values, or a block's previous owner may have left them there. Computing
        the request again from clean blocks tells which: it fails only if the logits are not finite again.
        """
        remedy = "; start the worker with --dtype float32" if self._info.dtype == "float16" else ""
        for sequence in sequences:
            if sequence.was_recomputed:
                sequence.fail(EngineError(f"the model produced logits that are not finite (NaN or infinity){remedy}"))
                sequence.reset_cache(discard=True)
            else:
                logger.warning("request %s: logits are not finite; computing it again", sequence.request_id)
                sequence.was_recomputed = True
                self._scheduler.preempt(sequence, discard=True)
        if not sequences:
            return
        try:
            self._step.clear_blocks(self._pool.used_free_blocks())
        except Exception as fault:
            raise EngineBrokenError(f"cache blocks cannot be cleared ({type(fault).__name__}); see the log") from fault

    def _collect(self) -> list[GenerationResult]:
        """Remove the choices that ended and free their blocks; return the results of requests whose choices all ended.

        A choice that fails ends its request's other choices too.
        """
        results: list[GenerationResult] = []
        while ended := self._scheduler.drop_finished():
            for sequence in ended:
                self._stop_watches.pop(sequence.request_id, None)
                self._forget(sequence)
                results += self._end(sequence)
        if results and not self._choices:
            try:
                self.check_integrity()
            except AssertionError:
                # The results are right, as every token was verified. Only memory was lost: reclaim it.
                logger.exception("the block pool lost its integrity; starting over with an empty one")
                self._pool.reset()
                for states in (self._states, self._draft_states):
                    if states is not None:
                        states.reset()
        return results

    def _end(self, sequence: Sequence) -> list[GenerationResult]:
        """The result of the request whose last sequence has ended with this one; none if others are left."""
        turnover = self._scorings.take(sequence)
        if turnover is None:
            result = final_result(sequence, self._codec, self._chat_forms)
            if sequence.error is not None:
                for other in self._choices.beside(sequence):
                    self._scheduler.abort(other)
            whole = self._choices.end(sequence, result)
            return [] if whole is None else [whole]
        self._choices.forget(sequence)
        for request in turnover.begin:
            self._begin(request)
        for sequence_id in turnover.abort:
            self.abort(sequence_id)
        return list(turnover.ended)

    def _forget(self, sequence: Sequence) -> None:
        try:
            self._speculator.forget(sequence)
        except Exception:  # drafts affect only speed
            logger.exception("the drafters learn nothing from request %s", sequence.request_id)
