"""engine_info: what an engine says of itself, from its models and its limits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from helix_jobs.engine.config import SpeculationConfig
from helix_jobs.engine.devices.devices import describe_device
from helix_jobs.engine.protocol import EngineInfo

if TYPE_CHECKING:
    from helix_jobs.engine.config import CacheConfig, EngineConfig
    from helix_jobs.engine.loaded_models import LoadedModel, LoadedModels


def engine_info(
    models: LoadedModels,
    config: EngineConfig,
    cache: CacheConfig,
    *,
    context: int,
    drafts_any: bool,
    kv_cache_bytes: int,
) -> EngineInfo:
    """Describe an engine.

    Args:
        models: Its models.
        config: Its limits.
        cache: Its cache's blocks.
        context: Prompt plus output tokens of a request at most.
        drafts_any: Whether its drafters may draft for any request; one that drafts only what grammars force is said to
            have no drafter.
        kv_cache_bytes: Size of the caches together.
    """
    speculation = config.speculation if drafts_any else SpeculationConfig(depth=0)
    draft = models.draft if speculation.is_on else None
    return EngineInfo(
        target_model=models.target.name,
        draft_model=_describe_draft(draft, speculation),
        device=describe_device(models.device),
        dtype=models.target.dtype_name,
        overflows_float16=models.target.overflowed,
        is_reproducible=_is_reproducible(models.target, draft, speculation),
        kernels=models.target.decoder.kernels,
        speculation_depth=None if speculation.is_adaptive else speculation.ceiling,
        max_batch_size=config.max_batch_size,
        max_model_len=context,
        num_blocks=cache.num_blocks,
        block_size=cache.block_size,
        kv_cache_bytes=kv_cache_bytes,
        kv_cache_dtype=cache.dtype,
        chat=models.chat_forms.in_words,
        adapters=tuple(one.name for one in models.adapters),
    )


def _describe_draft(draft: LoadedModel | None, speculation: SpeculationConfig) -> str | None:
    """The drafters, as results name them; None if nothing drafts."""
    found = speculation.drafters if speculation.is_on else ()
    return " + ".join([*found, *([draft.name] if draft is not None else [])]) or None


def _is_reproducible(target: LoadedModel, draft: LoadedModel | None, speculation: SpeculationConfig) -> bool:
    """Whether an answer is the same in any batch.

    With a fixed depth, a sampled answer also depends on the draft model's probabilities.
    """
    return target.is_reproducible and (speculation.is_adaptive or draft is None or draft.is_reproducible)
