"""Engine: add_request, step, abort, generate."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from helix_jobs.engine.block_table import BlockPool, BlockTable
from helix_jobs.engine.cache_size import choose_cache
from helix_jobs.engine.config import CacheConfig, EngineConfig, SpeculationConfig
from helix_jobs.engine.devices import cleanup_memory, free_memory
from helix_jobs.engine.drafters.draft_model import DraftModelDrafter
from helix_jobs.engine.kv_cache import CacheGeometry
from helix_jobs.engine.model_loader import describe_device, get_device, load_models
from helix_jobs.engine.model_runner import ModelRunner
from helix_jobs.engine.protocol import EngineInfo
from helix_jobs.engine.request import FinishReason, RequestState
from helix_jobs.engine.scheduler import Scheduler
from helix_jobs.engine.sequence import Sequence
from helix_jobs.engine.speculative import SpeculativeStep
from helix_jobs.engine.stats import StepStatistics
from helix_jobs.engine.text import StopStringWatch, TextCodec
from helix_jobs.errors import EngineError, InvalidRequestError, OutOfMemoryError, PromptTooLongError, RequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from collections.abc import Sequence as SequenceOf

    from helix_jobs.engine.model_loader import LoadedModels
    from helix_jobs.engine.protocol import EngineCounters
    from helix_jobs.engine.request import GenerationResult, Request
    from helix_jobs.engine.scheduler import Schedule
    from helix_jobs.engine.speculative import Emission
    from helix_jobs.settings import Settings

logger = logging.getLogger(__name__)


class Engine:
    """Continuously batched speculative decoding of requests (satisfies ``EngineProtocol``).

    One thread drives it; ``encode`` alone may be called from others. Requests fail alone: a step that fails is repeated
    with half the batch until it passes or the one request that breaks it is found.

    Args:
        models: From ``model_loader.load_models``.
        config: Batch limits and speculation.
        cache: Size of the block pool, shared by target and draft.
    """

    def __init__(self, models: LoadedModels, config: EngineConfig, cache: CacheConfig) -> None:
        context = min(models.max_context, config.max_model_len or models.max_context)
        if models.draft is None:
            config = replace(config, speculation=SpeculationConfig(depth=0))
        self._eos_token_ids = models.eos_token_ids
        self._device = models.device
        target = ModelRunner(models.target.model, cache, models.device)
        vocab_size = min(target.vocab_size, int(models.target.model.config.vocab_size))
        self._codec = TextCodec(models.tokenizer, vocab_size)
        drafter = None
        kv_cache_bytes = target.cache.num_bytes
        if models.draft is not None and config.speculation.depth > 0:
            draft = ModelRunner(models.draft.model, cache, models.device)
            drafter = DraftModelDrafter(draft, vocab_size)
            kv_cache_bytes += draft.cache.num_bytes
        self._pool = BlockPool(cache.num_blocks, cache.block_size)
        self._scheduler = Scheduler(config, self._pool)
        self._step = SpeculativeStep(target, drafter, vocab_size)
        self._statistics = StepStatistics()
        self._sequences: dict[str, Sequence] = {}
        self._stop_watches: dict[str, StopStringWatch] = {}
        self._info = EngineInfo(
            target_model=models.target.name,
            draft_model=models.draft.name if models.draft is not None and drafter is not None else None,
            device=describe_device(models.device),
            dtype=str(models.dtype).removeprefix("torch."),
            max_batch_size=config.max_batch_size,
            max_model_len=context,
            num_blocks=cache.num_blocks,
            block_size=cache.block_size,
            kv_cache_bytes=kv_cache_bytes,
        )

    @property
    def info(self) -> EngineInfo:
        """What was loaded where."""
        return self._info

    def encode(self, request: Request) -> Request:
        """Tokenise a request's prompt. Thread-safe.

        Raises:
            InvalidRequestError: The prompt or the messages cannot be encoded for this model.
            PromptTooLongError: No room is left in the context for one new token.
        """
        ids = self._codec.encode(request)
        if len(ids) >= self._info.max_model_len:
            raise PromptTooLongError(
                f"the prompt has {len(ids)} tokens and the context holds {self._info.max_model_len}, "
                "one new token included; shorten the prompt"
            )
        return replace(request, prompt=None, messages=None, prompt_token_ids=ids)

    def add_request(self, request: Request) -> None:
        """Queue a request, encoding it first if it is not. Its end, good or bad, comes out of ``step``.

        Raises:
            InvalidRequestError: The request id is already in the engine.
        """
        if request.request_id in self._sequences:
            raise InvalidRequestError(
                f"request {request.request_id} is already in the engine; finish or abort it first"
            )
        params = request.sampling_params
        stop_ids = frozenset(params.stop_token_ids)
        if not params.ignore_eos:
            stop_ids |= self._eos_token_ids
        error: RequestError | None = None
        try:
            request = self.encode(request)
        except RequestError as refused:
            error = refused
            request = replace(request, prompt=None, messages=None, prompt_token_ids=(0,))
        sequence = Sequence(request, BlockTable(self._pool), stop_ids, self._info.max_model_len)
        if error is not None:
            sequence.num_prompt_tokens = 0
            sequence.token_ids.clear()
            sequence.fail(error)
        self._sequences[request.request_id] = sequence
        if params.stop:
            self._stop_watches[request.request_id] = StopStringWatch(self._codec, params.stop)
        self._scheduler.add(sequence)

    def abort(self, request_id: str) -> None:
        """End a request with what it has; the result comes out of the next ``step``."""
        sequence = self._sequences.get(request_id)
        if sequence is not None and sequence.state is not RequestState.FINISHED:
            sequence.finish(FinishReason.ABORTED)

    def has_unfinished(self) -> bool:
        """Whether another ``step`` has work to do or results to return."""
        return self._scheduler.has_unfinished()

    def step(self) -> list[GenerationResult]:
        """Run one step of the batch and return what ended in it.

        A failure of the step itself (out of memory, a bug) never escapes: the batch is halved, and a request that
        fails alone ends with ``out_of_memory`` or ``engine_error``.
        """
        ended = self._collect()
        schedule = self._scheduler.schedule()
        if schedule.num_sequences:
            try:
                outcome = self._step.run(schedule)
            except Exception as error:  # noqa: BLE001  (whatever a kernel raises must not take the other jobs along)
                self._recover(error)
            else:
                self._account(schedule, outcome.emissions)
                if outcome.not_finite:
                    self._quarantine(outcome.not_finite)
        return ended + self._collect()

    def generate(self, requests: Iterable[Request]) -> list[GenerationResult]:
        """Run requests to their end; results in the order of the requests."""
        order = []
        for request in requests:
            order.append(request.request_id)
            self.add_request(request)
        results: dict[str, GenerationResult] = {}
        while self.has_unfinished():
            results.update((result.request_id, result) for result in self.step())
        return [results[request_id] for request_id in order]

    def counters(self) -> EngineCounters:
        """Totals since the engine was built."""
        return self._statistics.snapshot(self._pool.peak_used)

    def check_integrity(self) -> None:
        """Verify that the block pool and the sequences agree; with nothing unfinished, that every block is free.

        Raises:
            AssertionError: A bug in the engine.
        """
        self._pool.check_integrity(sequence.table for sequence in self._sequences.values())

    def close(self) -> None:
        """Drop every request and free the models and the caches."""
        for sequence in self._sequences.values():
            sequence.reset_cache()
        self._sequences.clear()
        self._stop_watches.clear()
        del self._step
        cleanup_memory(self._device)

    def _account(self, schedule: Schedule, emissions: SequenceOf[Emission]) -> None:
        """After a step that passed: apply stop strings and count."""
        statistics = self._statistics
        statistics.steps += 1
        statistics.sequence_steps += schedule.num_sequences
        statistics.decode_sequence_steps += len(schedule.decodes)
        statistics.prompt_tokens += sum(p.sequence.num_prompt_tokens for p in schedule.prefills if p.emits)
        for emission in emissions:
            num_new = len(emission.token_ids)
            watch = self._stop_watches.get(emission.sequence.request_id)
            if watch is not None and num_new:
                num_new -= _apply_stop_strings(emission.sequence, watch, num_new)
            statistics.completion_tokens += num_new
            statistics.draft_tokens += emission.num_drafted
            statistics.accepted_tokens += emission.num_accepted
        self._scheduler.step_passed()

    def _quarantine(self, sequences: SequenceOf[Sequence]) -> None:
        """Logits were not finite: keep the damage from spreading through reused blocks.

        The values may be the request's own, or stem from a block whose last owner left them there; computed again from
        clean blocks they tell which, and only the former fails.
        """
        for sequence in sequences:
            if sequence.was_recomputed:
                sequence.fail(EngineError("the model produced logits that are not finite (NaN or infinity)"))
                sequence.reset_cache()
            else:
                logger.warning("request %s: logits are not finite; computing it again", sequence.request_id)
                sequence.was_recomputed = True
                self._scheduler.preempt(sequence)
        self._step.clear_blocks(self._pool.used_free_blocks())

    def _recover(self, error: Exception) -> None:
        """A step failed: free what can be freed, and halve the batch or fail the one request it consists of."""
        cleanup_memory(self._device)
        active = self._scheduler.active
        out_of_memory = _is_out_of_memory(error)
        if len(active) > 1:
            logger.warning(
                "a step of %d requests failed (%s); going on with half of them",
                len(active),
                "out of memory" if out_of_memory else type(error).__name__,
                exc_info=None if out_of_memory else error,
            )
            self._scheduler.shrink()
            return
        logger.error("request %s failed alone", active[0].request_id, exc_info=error)
        if out_of_memory:
            active[0].fail(OutOfMemoryError("the request does not fit into the device's memory even alone"))
        else:
            active[0].fail(EngineError(f"the engine failed on this request alone: {type(error).__name__}"))

    def _collect(self) -> list[GenerationResult]:
        """Results of ended requests; their blocks are free afterwards."""
        results = []
        for sequence in self._scheduler.drop_finished():
            del self._sequences[sequence.request_id]
            self._stop_watches.pop(sequence.request_id, None)
            text = sequence.stopped_text
            results.append(sequence.result(self._codec.decode(sequence.output_token_ids) if text is None else text))
        if results and not self._sequences:
            self.check_integrity()
        return results


def load_engine(settings: Settings, on_progress: Callable[[str], None] | None = None) -> Engine:
    """Load the models that the settings name and build the engine around them.

    Raises:
        ConfigurationError: The device or the dtype is not to be had.
        ModelError: The models cannot be served here; the subclasses say why.
    """
    device = get_device(settings.device)
    models = load_models(
        settings.target_model,
        settings.draft_model if settings.speculation_depth > 0 else "none",
        device=device,
        dtype=settings.dtype,
        home=settings.home,
        on_progress=on_progress,
    )
    config = EngineConfig(
        max_batch_size=settings.max_batch_size, speculation=SpeculationConfig(depth=settings.speculation_depth)
    )
    loaded = [models.target] if models.draft is None else [models.target, models.draft]
    cache = choose_cache(
        block_bytes=sum(CacheGeometry.of(one.model).block_bytes(16, one.dtype) for one in loaded),
        kv_cache_mb=settings.kv_cache_mb,
        free_bytes=free_memory(device),
        on_host=device.type in ("cpu", "mps"),
        max_batch_size=config.max_batch_size,
        max_model_len=models.max_context,
        depth=config.speculation.depth,
    )
    return Engine(models, config, cache)


def _apply_stop_strings(sequence: Sequence, watch: StopStringWatch, num_new: int) -> int:
    """End the sequence where a stop string does; return how many of its new tokens went."""
    found = watch.find(sequence.output_token_ids, num_new)
    if found is None:
        return 0
    num_tokens, sequence.stopped_text = found
    num_dropped = sequence.num_output_tokens - num_tokens
    sequence.truncate_output(num_tokens)
    sequence.finish(FinishReason.STOP)
    return num_dropped


def _is_out_of_memory(error: Exception) -> bool:
    """Out of memory, as each backend says it (torch's own class, the CPU's and DirectML's allocators)."""
    text = str(error).lower()
    signs = ("out of memory", "could not allocate tensor", "can't allocate memory", "not enough memory")
    return isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or any(sign in text for sign in signs)
