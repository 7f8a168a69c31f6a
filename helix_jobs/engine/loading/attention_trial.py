"""Which attention is faster on a device: a short trial when a model is loaded. The verdict is kept."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import torch

from helix_jobs.engine.attention.backend import LayerAttention
from helix_jobs.engine.attention.cache_geometry import CacheGeometry
from helix_jobs.engine.attention.dense import DenseAttention
from helix_jobs.engine.attention.kv_cache import PagedKVCache
from helix_jobs.engine.attention.sdpa import SdpaAttention
from helix_jobs.engine.attention.step_layout import TokenSlice
from helix_jobs.engine.config import DEFAULT_BLOCK_SIZE, CacheConfig
from helix_jobs.engine.devices.devices import describe_device, driver_version, is_out_of_memory
from helix_jobs.engine.devices.kept_file import KeptFile
from helix_jobs.engine.devices.operator_checks import difference
from helix_jobs.engine.model.upload import upload

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from helix_jobs.engine.attention.backend import AttentionBackend, AttentionSpec, AttentionStep
    from helix_jobs.engine.loaded_models import LoadedModel, LoadedModels
    from helix_jobs.engine.model.decoder import Decoder

logger = logging.getLogger(__name__)

# Devices where torch may have a fused kernel. On a CPU it is slower for single queries and would change answers;
# DirectML has none.
_DEVICES: Final = ("cuda", "xpu", "mps")
# Tokens in the cache before a step: about the middle of a job. All sequences of a trial share them.
_CONTEXT: Final = 512
# Kinds of steps, as (sequences, new tokens of each): a job, a batch, a batch that verifies drafts, a prompt.
_KINDS: Final = ((1, 1), (32, 1), (32, 4), (1, _CONTEXT))
_CALLS: Final = 10
_ROUNDS: Final = 5
# A new kernel is used if no kind of step takes longer than the first ratio, and all together no longer than the second.
_WORST_RATIO: Final = 1.1
_TOTAL_RATIO: Final = 0.95
_FUSED, _PLAIN = "sdpa", "dense"


def with_faster_attention(
    models: LoadedModels,
    folder: Path,
    on_progress: Callable[[str], None] | None = None,
    kv_cache_dtype: str = "auto",
) -> LoadedModels:
    """Let each model that attends in plain matrix products use torch's fused operator where that is faster.

    Trade-off: the two round differently, so the verdict is kept: answers stay the same from one start to the next.

    Args:
        models: Loaded models, with compiled kernels where there are any.
        folder: Keeps the verdicts.
        on_progress: Receives one line when a trial begins.
        kv_cache_dtype: HELIX_KV_CACHE_DTYPE.
    """
    if models.device.type not in _DEVICES:
        return models
    report = on_progress or logger.info

    def changed(model: LoadedModel) -> LoadedModel:
        return _with_faster_attention(model, folder, report, kv_cache_dtype)

    return replace(models, target=changed(models.target), draft=None if models.draft is None else changed(models.draft))


def _with_faster_attention(
    model: LoadedModel, folder: Path, report: Callable[[str], None], kv_cache_dtype: str
) -> LoadedModel:
    decoder = model.decoder
    attention = decoder.attention
    if attention.kernels != DenseAttention.kernels or not SdpaAttention.serves(attention.spec):
        return model
    if not is_faster(decoder, folder, report, kv_cache_dtype):
        return model
    return replace(model, decoder=replace(decoder, attention=SdpaAttention(decoder.attention.spec)))


def is_faster(decoder: Decoder, folder: Path, report: Callable[[str], None], kv_cache_dtype: str = "auto") -> bool:
    """Whether the fused operator is right and faster for this model here; from the file if it was tried before."""
    spec = decoder.attention.spec
    identity = {
        "device": describe_device(decoder.device),
        "driver": driver_version(decoder.device),
        "torch": torch.__version__,
        "dtype": str(decoder.dtype),
        "heads": ", ".join(
            f"{spec.num_heads} / {shape.num_kv_heads} of {shape.head_dim}"
            + ("" if shape.has_values else f", values the first {shape.value_width}")
            for shape in spec.geometry.shapes
        ),
        # Not named where it is the model's own, so that verdicts of earlier versions stay.
        **({} if kv_cache_dtype == "auto" else {"kv_cache": kv_cache_dtype}),
    }
    file = KeptFile(folder, "attention", identity)
    kept = file.read()
    if isinstance(kept, dict) and kept.get("verdict") in (_FUSED, _PLAIN):
        return bool(kept["verdict"] == _FUSED)
    report("trying which attention is faster here, once for this model")
    try:
        seconds = _try(spec, decoder.dtype, decoder.device, kv_cache_dtype)
    except Exception as error:  # a driver may raise anything; plain products remain
        logger.info("torch's fused attention fails on %s", identity["device"], exc_info=True)
        if is_out_of_memory(error):
            return False  # there may be more memory another time
        seconds = None
    is_taken = seconds is not None and pays(seconds)
    file.write({"verdict": _FUSED if is_taken else _PLAIN, "seconds": seconds})
    return is_taken


def pays(seconds: Sequence[tuple[float, float]]) -> bool:
    """Whether to use the fused operator, given its seconds and those of plain products for each kind of step."""
    plain, fused = (sum(one) for one in zip(*seconds, strict=True))
    return fused <= plain * _TOTAL_RATIO and all(mine <= theirs * _WORST_RATIO for theirs, mine in seconds)


@torch.inference_mode()
def _try(
    spec: AttentionSpec, dtype: torch.dtype, device: torch.device, kv_cache_dtype: str
) -> list[tuple[float, float]] | None:
    """Seconds of the attention of a layer of each shape, by plain products and by the fused operator.

    None where results differ.
    """
    found = []
    for shape in spec.geometry.shapes:
        one_layer = replace(
            spec, geometry=CacheGeometry(layers=(shape,)), layers=(LayerAttention(spec.layers[0].scaling),)
        )
        seconds = _try_layer(one_layer, dtype, device, kv_cache_dtype)
        if seconds is None:
            return None
        found += seconds
    return found


def _try_layer(
    one_layer: AttentionSpec, dtype: torch.dtype, device: torch.device, kv_cache_dtype: str
) -> list[tuple[float, float]] | None:
    """``_try`` for the only layer of ``one_layer``."""
    backends = (DenseAttention(one_layer), SdpaAttention(one_layer))
    generator = torch.Generator().manual_seed(3)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype).to(device)

    num_shared = _CONTEXT // DEFAULT_BLOCK_SIZE
    own = max(count * -(-new // DEFAULT_BLOCK_SIZE) for count, new in _KINDS)
    config = CacheConfig(num_blocks=num_shared + own, block_size=DEFAULT_BLOCK_SIZE, dtype=kv_cache_dtype)
    cache = PagedKVCache(one_layer.geometry, config, dtype, device)
    (shape,) = one_layer.geometry.layers
    rows = config.num_blocks * DEFAULT_BLOCK_SIZE * shape.num_kv_heads
    values = numbers(rows, shape.value_width) if shape.has_values else None
    cache.write(0, torch.arange(rows, device=device), numbers(rows, shape.head_dim), values)
    width = one_layer.num_heads * shape.head_dim + shape.token_elements
    found = []
    for count, new in _KINDS:
        each = -(-new // DEFAULT_BLOCK_SIZE)
        slices = [
            TokenSlice(new, _CONTEXT, [*range(num_shared), *range(num_shared + i * each, num_shared + (i + 1) * each)])
            for i in range(count)
        ]
        qkv = numbers(count * new, width)
        plain, fused = (_begin(backend, slices, cache, device) for backend in backends)
        wrong = difference(fused.attend(0, qkv).cpu(), plain.attend(0, qkv).cpu())
        if wrong is not None:
            logger.warning("torch's fused attention is %s on %s", wrong, describe_device(device))
            return None
        rounds = [(_seconds(plain, qkv), _seconds(fused, qkv)) for _ in range(_ROUNDS)]
        found.append((min(first for first, _ in rounds), min(second for _, second in rounds)))
    return found


def _begin(
    backend: AttentionBackend, slices: Sequence[TokenSlice], cache: PagedKVCache, device: torch.device
) -> AttentionStep:
    plan = backend.plan(slices, cache)
    return backend.begin(plan.on_device(iter(upload(plan.arrays(), device))), cache)


def _seconds(step: AttentionStep, qkv: torch.Tensor) -> float:
    """Seconds of one call, averaged over several that are waited for together."""
    started = time.perf_counter()
    for _ in range(_CALLS):
        output = step.attend(0, qkv)
    output.narrow(0, 0, 1).cpu()
    return (time.perf_counter() - started) / _CALLS
