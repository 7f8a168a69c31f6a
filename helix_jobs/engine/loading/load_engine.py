"""load_engine: from settings to a running engine."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from helix_jobs.bounds import DEFAULT_MAX_BATCH_SIZE
from helix_jobs.engine.config import NO_DRAFT, EngineConfig, SpeculationConfig
from helix_jobs.engine.devices.devices import describe_device, explaining_shortage, free_memory
from helix_jobs.engine.devices.self_check import check_device
from helix_jobs.engine.engine import Engine
from helix_jobs.engine.kernels.cpu.build import compiles_kernels, processor_features
from helix_jobs.engine.kernels.cpu.kernels import load_kernels
from helix_jobs.engine.kernels.cpu.native_decoder import kernel_head_dim, native_of, with_native
from helix_jobs.engine.loaded_models import LoadedAdapter
from helix_jobs.engine.loading.attention_trial import with_faster_attention
from helix_jobs.engine.loading.byte_trial import without_slow_bytes
from helix_jobs.engine.loading.cache_format import check_cache_device
from helix_jobs.engine.loading.draft_spec import DraftSpec
from helix_jobs.engine.loading.model_loader import get_device, load_models
from helix_jobs.engine.loading.peft_adapter import read_adapter
from helix_jobs.engine.loading.reproducible import make_draft_reproducible, make_reproducible
from helix_jobs.engine.loading.sizing import batch_limits, cache_config
from helix_jobs.engine.loading.weight_format import PACKED, format_of
from helix_jobs.engine.model.adapters import with_adapters
from helix_jobs.engine.model.quantize import dequantize, is_fast, unpack, without_blocks
from helix_jobs.engine.speculation.depth.profile import CostProfileFile
from helix_jobs.engine.weights.packed_int8_linear import PackedInt8Linear
from helix_jobs.engine.weights.packed_linear import PackedLinear
from helix_jobs.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from helix_jobs.engine.kernels.cpu.kernels import NativeKernels
    from helix_jobs.engine.loaded_models import LoadedModel, LoadedModels
    from helix_jobs.engine.loading.peft_adapter import PeftAdapter
    from helix_jobs.engine.weights.adapter import Adapter
    from helix_jobs.settings import Settings

logger = logging.getLogger(__name__)


def load_engine(settings: Settings, on_progress: Callable[[str], None] | None = None) -> Engine:
    """Load the models that the settings name and build the engine around them.

    Raises:
        ConfigurationError: The device, the dtype or the draft is not available, or the device computes wrong results.
        ModelError: The models cannot be served here; the subclasses say why.
    """
    device = get_device(settings.device)
    check_cache_device(settings.kv_cache_dtype, device)
    named = DraftSpec.parse(settings.draft_model)
    profiles = settings.home / "profiles"
    check_device(device, format_of(settings.dtype, device, None).dtype, profiles, on_progress)
    draft = DraftSpec(NO_DRAFT) if settings.speculation_depth == 0 else named
    adapters = [read_adapter(name, folder) for name, folder in settings.adapters]
    if adapters and settings.reproducible == "on":
        raise ConfigurationError(
            "--reproducible cannot be had beside adapters, whose products may round by what is computed beside them; "
            "go on without one of the two"
        )
    models = open_models(
        settings.target_model,
        draft,
        device=device,
        dtype=settings.dtype,
        compile_when=settings.compile,
        home=settings.home,
        adapters=adapters,
        kv_cache_dtype=settings.kv_cache_dtype,
        max_batch_size=settings.max_batch_size or DEFAULT_MAX_BATCH_SIZE,
        on_progress=on_progress,
    )
    if adapters:
        models = add_adapters(models, [one.adapter for one in adapters], on_progress)
    else:
        models = make_reproducible(models, settings.reproducible, profiles, on_progress)
    if settings.speculation_depth is not None:
        models = make_draft_reproducible(models, settings.reproducible, profiles, on_progress)
    limits = batch_limits(models, settings)
    config = EngineConfig(
        max_batch_size=limits.max_batch_size,
        token_budget=limits.token_budget,
        urgent_slots=settings.interactive_slots,
        speculation=speculation_config(settings.speculation_depth, draft),
    )
    cache = cache_config(models, config, settings.kv_cache_mb, settings.kv_cache_dtype)
    if not (config.speculation.adaptive and config.speculation.is_on and (models.draft or draft.drafters)):
        return Engine(models, config, cache)
    file = CostProfileFile(profiles, _identity(models, config, settings.kv_cache_dtype))
    kept = file.read()
    if kept is None and on_progress is not None:
        on_progress("measuring what steps cost here, once for these models")
    engine = Engine(models, config, cache, kept)
    measured = engine.cost_profile()
    if kept is None and measured is not None:
        file.write(measured)
    return engine


def open_models(
    target: str,
    draft: DraftSpec,
    *,
    device: torch.device,
    dtype: str,
    compile_when: str,
    home: Path,
    adapters: Sequence[PeftAdapter] = (),
    kv_cache_dtype: str = "auto",
    max_batch_size: int = DEFAULT_MAX_BATCH_SIZE,
    on_progress: Callable[[str], None] | None = None,
) -> LoadedModels:
    """Load models, in the forms in which this machine multiplies their weights fast.

    The worker and the benches both open their models here, so that a bench measures what a worker computes.

    Args:
        target: As all that is not named here, see ``load_models``.
        draft: The drafters and the draft model.
        device: From ``get_device``.
        dtype: As HELIX_DTYPE.
        compile_when: As HELIX_COMPILE, see ``with_compiled_kernels``.
        home: HELIX_HOME; kernels and trials are kept under it.
        adapters: Are added later, see ``add_adapters``.
        kv_cache_dtype: HELIX_KV_CACHE_DTYPE.
        max_batch_size: Sequences that will be computed at once.
        on_progress: Receives one line for each thing that is done.

    Raises:
        ConfigurationError, ModelError: See ``load_models`` and ``with_compiled_kernels``.
    """
    models = load_models(
        target,
        draft.model,
        device=device,
        dtype=dtype,
        home=home,
        on_progress=on_progress,
        compiles=compiles_kernels(device, compile_when),
        copies_blocks=draft.copies_blocks,
        adapters=adapters,
        kv_cache_dtype=kv_cache_dtype,
    )
    faster = partial(
        without_slow_bytes, max_batch_size=max_batch_size, folder=home / "profiles", on_progress=on_progress
    )
    models = with_compiled_kernels(models, compile_when, home / "native", on_progress, faster)
    models = without_exact_copy(models, on_progress)
    models = without_uncompiled_blocks(models, on_progress)
    if dtype != PACKED:
        models = without_slow_blocks(models, on_progress)
    models = without_slow_int8(models, on_progress)
    return with_faster_attention(models, home / "profiles", on_progress, kv_cache_dtype)


def add_adapters(
    models: LoadedModels, adapters: Sequence[Adapter], on_progress: Callable[[str], None] | None = None
) -> LoadedModels:
    """Add adapters to the target, after everything that exchanges its linear layers.

    Raises:
        ModelError: A weight of an adapter does not fit into the dtype of the target's activations.
    """
    report = on_progress or logger.info
    report(f"adding the adapters {', '.join(adapter.name for adapter in adapters)}")
    with explaining_shortage(models.device, "adapters were added", "give fewer adapters, or lower HELIX_KV_CACHE_MB"):
        decoder = with_adapters(models.target.decoder, adapters)
    loaded = tuple(LoadedAdapter(adapter.name, adapter.digest) for adapter in adapters)
    return replace(models, target=replace(models.target, decoder=decoder), adapters=loaded)


def with_compiled_kernels(
    models: LoadedModels,
    when: str,
    folder: Path,
    on_progress: Callable[[str], None] | None = None,
    faster: Callable[[LoadedModel, NativeKernels], LoadedModel] = lambda model, _: model,
) -> LoadedModels:
    """Let the models compute with kernels compiled for this machine.

    Args:
        models: Loaded models, not packed yet.
        when: ``on``, ``off``, or ``auto``: where it can be done.
        folder: Keeps the compiled library.
        on_progress: Receives one line with the outcome.
        faster: Gives a model the form in which these kernels compute it fastest.

    Raises:
        ConfigurationError: ``when`` is ``on``, and the kernels do not support this device or dtype or cannot be
            compiled.
    """
    report = on_progress or logger.info
    device = models.device
    if when == "off":
        return models
    started = time.perf_counter()
    try:
        target = _computing_natively(models.target, folder, faster)
        draft = None if models.draft is None else _computing_natively(models.draft, folder, faster)
    except ConfigurationError as error:
        if when == "on":
            raise
        if device.type == "cpu":
            report(f"going on without compiled kernels: {error}")
        return models
    report(f"compiled kernels ready after {time.perf_counter() - started:.1f} s")
    return replace(models, target=target, draft=draft)


def without_exact_copy(models: LoadedModels, on_progress: Callable[[str], None] | None = None) -> LoadedModels:
    """Let no draft be the target itself: a copy of its blocks whose activations are not rounded after all.

    Trade-off: the copy is left out for few sequences, too, of which its rounded products would take less time than the
    target's. They take most of that time, so such drafts hardly pay.
    """
    draft = models.draft
    if draft is None or not draft.is_copy or draft.is_int8:
        return models
    report = on_progress or logger.info
    report("going on without the int8 draft: activations that are not rounded make it the target itself")
    return replace(models, draft=None)


def without_uncompiled_blocks(models: LoadedModels, on_progress: Callable[[str], None] | None = None) -> LoadedModels:
    """Round int8 models that kept their blocks to int8 rows where no compiled kernel multiplies blocks after all."""
    report = on_progress or logger.info

    def changed(model: LoadedModel) -> LoadedModel:
        kept = any(isinstance(linear, PackedInt8Linear) for linear in model.decoder.linears())
        if not kept or native_of(model.decoder) is not None:
            return model
        report(f"weights of {model.name} are rounded to int8 rows: without compiled kernels blocks are slow")
        return replace(model, decoder=without_blocks(model.decoder))

    draft = None if models.draft is None else changed(models.draft)
    return replace(models, target=changed(models.target), draft=draft)


def without_slow_int8(models: LoadedModels, on_progress: Callable[[str], None] | None = None) -> LoadedModels:
    """Let no draft compute in int8 where that is slow: without VNNI and without kernels compiled for AVX2.

    torch's own int8 product is a plain loop there. An int8 copy of the target would cost many times as much as the
    target, so it is dropped; another draft model is widened to the dtype of its activations.
    """
    draft = models.draft
    if draft is None or not draft.is_int8 or is_fast(draft.decoder):
        return models
    report = on_progress or logger.info
    if draft.is_copy:
        report("going on without the int8 draft: without VNNI or compiled kernels it is slower than its target here")
        return replace(models, draft=None)
    report(f"draft {draft.name} computes in {str(draft.decoder.dtype).removeprefix('torch.')}: int8 is slow here")
    return replace(models, draft=replace(draft, decoder=dequantize(draft.decoder), is_int8=False))


def without_slow_blocks(models: LoadedModels, on_progress: Callable[[str], None] | None = None) -> LoadedModels:
    """Decode a target's weights that are stored in blocks where no compiled kernel multiplies them, if they fit dense.

    torch's operators take longer to decode the weights, in each step, than to multiply them.
    """
    decoder = models.target.decoder
    packed = [linear for linear in decoder.linears() if isinstance(linear, PackedLinear)]
    if not packed or native_of(decoder) is not None:
        return models
    report = on_progress or logger.info
    needed = sum(linear.out_features * linear.in_features for linear in packed) * decoder.dtype.itemsize
    free = free_memory(decoder.device)
    if free is not None and needed > free:
        report("weights stay in blocks, for there is no room for them decoded; without compiled kernels that is slow")
        return models
    report(
        f"weights are decoded to {str(decoder.dtype).removeprefix('torch.')}: without compiled kernels blocks are slow"
    )
    return replace(models, target=replace(models.target, decoder=unpack(decoder)))


def _computing_natively(
    model: LoadedModel,
    folder: Path,
    faster: Callable[[LoadedModel, NativeKernels], LoadedModel] = lambda model, _: model,
) -> LoadedModel:
    decoder = model.decoder
    if native_of(decoder) is not None:
        return model
    kernels = load_kernels(folder, decoder.dtype, decoder.device, kernel_head_dim(decoder))
    model = faster(model, kernels)
    return replace(model, decoder=with_native(model.decoder, kernels))


def speculation_config(depth: int | None, draft: DraftSpec) -> SpeculationConfig:
    """Read the setting: None means an adaptive depth, a number a fixed depth, and 0 off."""
    if depth is None:
        return SpeculationConfig(drafters=draft.drafters)
    return SpeculationConfig(depth=depth, adaptive=False, drafters=draft.drafters if depth else ())


def _identity(models: LoadedModels, config: EngineConfig, kv_cache_dtype: str) -> dict[str, str]:
    """The identity for which a cost profile is valid."""
    return {
        "device": describe_device(models.device),
        "processor": processor_features(),
        "target": f"{models.target.name} {models.target.dtype_name}",
        "draft": "none" if models.draft is None else f"{models.draft.name} {models.draft.dtype_name}",
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "kernels": " + ".join(model.decoder.kernels for model in (models.target, models.draft) if model is not None),
        "reproducible": str(models.target.is_reproducible),
        "max_batch_size": str(config.max_batch_size),
        "max_depth": str(config.speculation.max_depth),
        # Not named where it is the model's own, so that profiles of earlier versions stay valid.
        **({} if kv_cache_dtype == "auto" else {"kv_cache": kv_cache_dtype}),
    }
