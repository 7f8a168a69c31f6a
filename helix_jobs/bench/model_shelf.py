"""ModelShelf: the models of a bench, loaded once, and fresh engines around them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from helix_jobs.bench.workloads import build_requests, greedy, with_limit
from helix_jobs.bounds import MAX_SPECULATION_DEPTH
from helix_jobs.engine.config import DEFAULT_BLOCK_SIZE, NO_DRAFT, EngineConfig, defaults_for
from helix_jobs.engine.devices.devices import free_memory, total_memory
from helix_jobs.engine.engine import Engine
from helix_jobs.engine.loading.cache_format import block_bytes
from helix_jobs.engine.loading.cache_size import choose_cache
from helix_jobs.engine.loading.draft_spec import DraftSpec
from helix_jobs.engine.loading.load_engine import open_models
from helix_jobs.engine.loading.model_loader import describe_device, get_device
from helix_jobs.engine.loading.reproducible import make_draft_reproducible, make_reproducible
from helix_jobs.engine.request import EncodedRequest
from helix_jobs.engine.text.codec import TextCodec
from helix_jobs.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from helix_jobs.bench.modes import Mode
    from helix_jobs.bench.plan import BenchPlan
    from helix_jobs.engine.loaded_models import LoadedModels
    from helix_jobs.engine.model.decoder import Decoder
    from helix_jobs.engine.request import Request
    from helix_jobs.engine.speculation.depth.costs import CostProfile


class ModelShelf:
    """One target, and each draft that a mode asks for.

    An engine is built anew for every run: a prefix cache, looked-up outputs or learnt acceptance of an earlier run
    would make the same prompts look cheaper than they are.
    """

    def __init__(self, plan: BenchPlan, on_progress: Callable[[str], None]) -> None:
        self._plan = plan
        device = get_device(plan.device)
        self._models: dict[str, LoadedModels] = {}  # by the draft model's name
        # Modes that differ in drafters alone share a draft model, made as the first of them has it made.
        specs = {mode.draft_spec.model: mode.draft_spec for mode in reversed(plan.modes) if not mode.is_off}
        drafts = dict.fromkeys(mode.draft_spec.model for mode in plan.modes if not mode.is_off)
        for draft in drafts or (NO_DRAFT,):
            if draft == NO_DRAFT and self._models:
                self._models[draft] = replace(self.models, draft=None)
                continue
            loaded = open_models(
                plan.target,
                specs.get(draft, DraftSpec(NO_DRAFT)),
                device=device,
                dtype=plan.dtype,
                compile_when=plan.compile,
                home=plan.home,
                kv_cache_dtype=plan.kv_cache_dtype,
                max_batch_size=max(plan.batch_sizes),
                on_progress=on_progress,
            )
            # All modes share the first target, so that they differ only in the draft.
            self._models[draft] = (
                replace(loaded, target=self.models.target)
                if self._models
                else make_reproducible(loaded, plan.reproducible, plan.home / "profiles", on_progress)
            )
        # With a fixed depth the draft, too, must compute the same whatever else is in the batch. The weights are
        # shared.
        fixed = {mode.draft_spec.model for mode in plan.modes if not mode.speculation_config().adaptive}
        self._models_of_fixed_depth = {
            draft: make_draft_reproducible(loaded, plan.reproducible, plan.home / "profiles", on_progress)
            for draft, loaded in self._models.items()
            if draft in fixed
        }
        # The first engine of a kind measures the cost of steps in its warm-up; later engines reuse the result.
        self._costs: dict[tuple[Mode, int], CostProfile] = {}
        self._codec = TextCodec(self.models.tokenizer, self.models.vocab_size, self.models.prompts)

    @property
    def models(self) -> LoadedModels:
        """The target with the first draft."""
        return next(iter(self._models.values()))

    @property
    def decoder(self) -> Decoder:
        """The target's decoder."""
        return self.models.target.decoder

    @property
    def device(self) -> torch.device:
        """The device of the models."""
        return self.models.device

    @property
    def device_name(self) -> str:
        """The device's name for display."""
        return describe_device(self.device)

    @property
    def dtype_name(self) -> str:
        """The dtype that the target computes in."""
        return self.models.target.dtype_name

    def requests(self, batch_size: int, variant: str) -> tuple[EncodedRequest, ...]:
        """The workload's encoded requests; greedy when peers answer them too.

        Raises:
            InputError: A prompt does not fit the model's context, or the file is bad.
        """
        plan, context = self._plan, self.models.max_context
        made = build_requests(plan.kind, plan.workload_options(batch_size), variant, self._encode)
        if plan.peers:
            made = tuple(greedy(request) for request in made)
        return tuple(_within(request, context) for request in made)

    def encoded(self, requests: Sequence[Request]) -> list[EncodedRequest]:
        """Requests of a bench's own, encoded as the workloads' are.

        Raises:
            InputError: A prompt does not fit the model's context.
        """
        context = self.models.max_context
        return [
            _within(
                EncodedRequest(
                    request_id=request.request_id,
                    prompt_token_ids=self._encode(request),
                    sampling_params=request.sampling_params,
                    seed=request.seed,
                    is_chat=request.messages is not None,
                ),
                context,
            )
            for request in requests
        ]

    def engine(self, mode: Mode, batch_size: int, requests: Sequence[EncodedRequest]) -> Engine:
        """A fresh engine whose cache holds a full batch of such requests (or what ``kv_cache_mb`` allows)."""
        by_draft = self._models if mode.speculation_config().adaptive else self._models_of_fixed_depth
        models = self.models if mode.is_off else by_draft[mode.draft_spec.model]
        config = EngineConfig(
            max_batch_size=batch_size,
            token_budget=defaults_for(self.device.type, total_memory(self.device)).token_budget,
            speculation=mode.speculation_config(),
        )
        decoders = [self.decoder]
        if models.draft is not None:
            decoders.append(models.draft.decoder)
        cache = choose_cache(
            block_bytes=sum(block_bytes(one, self._plan.kv_cache_dtype) for one in decoders),
            kv_cache_mb=self._plan.kv_cache_mb,
            free_bytes=free_memory(self.device),
            on_host=self.device.type in ("cpu", "mps"),
            max_batch_size=batch_size,
            max_model_len=longest(requests),
            depth=MAX_SPECULATION_DEPTH,
        )
        cache = replace(cache, dtype=self._plan.kv_cache_dtype)
        engine = Engine(models, config, cache, self._costs.get((mode, batch_size)))
        measured = engine.cost_profile()
        if measured is not None:
            self._costs.setdefault((mode, batch_size), measured)
        return engine

    def kv_cache_bytes(self, batch_size: int, requests: Sequence[EncodedRequest]) -> int:
        """Keys and values of a full batch of such requests."""
        blocks = batch_size * -(-longest(requests) // DEFAULT_BLOCK_SIZE)
        return blocks * block_bytes(self.decoder, self._plan.kv_cache_dtype)

    def _encode(self, request: Request) -> tuple[int, ...]:
        if request.messages is not None and not self.models.tokenizer.chat_template:
            text = "\n".join(message["content"] for message in request.messages)
            request = replace(request, messages=None, prompt=text)
        return self._codec.encode(request).token_ids


def longest(requests: Sequence[EncodedRequest]) -> int:
    """Prompt plus output tokens of the longest request."""
    return max(len(request.prompt_token_ids) + request.sampling_params.max_tokens for request in requests)


def _within(request: EncodedRequest, context: int) -> EncodedRequest:
    """The request with its output limit cut to the room left in the context, as the engine would do."""
    length = len(request.prompt_token_ids)
    if length >= context:
        raise InputError(
            f"request {request.request_id} of the workload has {length} tokens and the model's context holds "
            f"{context}, one new token included; give a smaller --prompt-tokens, or shorter prompts"
        )
    params = request.sampling_params
    if length + params.max_tokens <= context:
        return request
    return replace(request, sampling_params=with_limit(params, context - length))
