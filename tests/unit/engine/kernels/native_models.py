"""Tiny models that compute with compiled kernels, in both dtypes these kernels are for."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from helix_jobs.engine.config import CacheConfig, EngineConfig, SpeculationConfig
from helix_jobs.engine.engine import Engine
from helix_jobs.engine.kernels.cpu.kernels import load_kernels
from helix_jobs.engine.kernels.cpu.native_decoder import with_native
from helix_jobs.engine.loaded_models import LoadedModel, LoadedModels
from helix_jobs.engine.model.assembly import build_decoder
from helix_jobs.engine.model.quantize import quantize
from helix_jobs.engine.model.runner import ModelRunner
from tests.unit.engine.tiny_models import CPU, EOS, copy_of, loaded, roughen, tiny_model

if TYPE_CHECKING:
    from pathlib import Path

    from helix_jobs.engine.model.decoder import Decoder

DTYPES = (torch.float32, torch.bfloat16)
HEAD_DIM = 16


def compiled_decoder(
    folder: Path, dtype: torch.dtype, *, int8: bool = False, architecture: str = "llama", **overrides: Any
) -> Decoder:
    """A tiny Llama, or another architecture; ``int8`` gives its quantised copy."""
    model = tiny_model(architecture, head_dim=HEAD_DIM, **overrides)
    decoder = build_decoder(copy_of(roughen(model).to(dtype), dtype), keeps_origins=True)
    return with_native(quantize(decoder) if int8 else decoder, load_kernels(folder, dtype, CPU, HEAD_DIM))


def compiled_runner(folder: Path, dtype: torch.dtype, cache_dtype: str = "auto") -> ModelRunner:
    return ModelRunner(compiled_decoder(folder, dtype), CacheConfig(num_blocks=120, block_size=4, dtype=cache_dtype))


def compiled_models(folder: Path, dtype: torch.dtype, *, int8: bool = False) -> LoadedModels:
    """The tiny Llama with its int8 copy as draft; ``int8`` makes the target int8 too."""
    template = loaded(tiny_model(head_dim=HEAD_DIM), None, (EOS,))
    return LoadedModels(
        LoadedModel("tiny", compiled_decoder(folder, dtype, int8=int8), is_int8=int8),
        LoadedModel("int8", compiled_decoder(folder, dtype, int8=True), is_int8=True, is_copy=True),
        template.tokenizer,
        template.eos_token_ids,
        template.vocab_size,
        template.max_context,
    )


def compiled_engine(
    models: LoadedModels,
    *,
    speculation: SpeculationConfig,
    num_blocks: int = 400,
    cache_dtype: str = "auto",
    **config: Any,
) -> Engine:
    """An engine over such models; a depth of 0 leaves the draft out."""
    return Engine(
        models if speculation.depth else replace(models, draft=None),
        EngineConfig(speculation=speculation, **config),
        CacheConfig(num_blocks=num_blocks, block_size=4, dtype=cache_dtype),
    )
