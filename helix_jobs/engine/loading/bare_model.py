"""A transformers model without memory for its weights, filled weight by weight by a reader of ours."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import GenerationConfig

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PretrainedConfig

    from helix_jobs.engine.weights.block_matrix import BlockMatrix
    from helix_jobs.engine.weights.block_stack import BlockStack


def compute_frequencies(base: Any, config: PretrainedConfig) -> None:  # noqa: ANN401  (the architecture's class)
    """Make the rotary modules anew: what they computed at first is not in memory."""
    for name, module in list(base.named_children()):  # most call it rotary_emb
        if any(buffer.endswith("inv_freq") for buffer, _ in module.named_buffers(recurse=False)):
            setattr(base, name, type(module)(config))


def set_generation(model: Any, folder: Path) -> None:  # noqa: ANN401  (the architecture's class)
    """Give the model the settings of generation beside it, as ``from_pretrained`` does."""
    with contextlib.suppress(OSError):  # there are none
        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)


def put(module: Any, kind: str, value: torch.Tensor | BlockMatrix | BlockStack) -> None:  # noqa: ANN401  (its parameters' names are the file's)
    """Give a module its parameter, or buffer, of the name ``kind``."""
    is_buffer = kind in dict(module.named_buffers(recurse=False))
    delattr(module, kind)
    if is_buffer:
        module.register_buffer(kind, value)
        return
    if isinstance(value, torch.Tensor) and not isinstance(value, nn.Parameter):
        value = nn.Parameter(value, requires_grad=False)
    setattr(module, kind, value)
