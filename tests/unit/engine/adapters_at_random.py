"""Adapters of random weights, and models that they are worked into: a reference without PEFT."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers.pytorch_utils import Conv1D

from helix_jobs.engine.weights.adapter import Adapter, LoraPair
from tests.unit.engine.tiny_models import copy_of

if TYPE_CHECKING:
    from collections.abc import Sequence


def random_adapter(name: str, model: Any, modules: Sequence[str], rank: int) -> Adapter:
    """Changes of these modules, which are named as in the decoder."""
    generator = torch.Generator().manual_seed(rank)
    pairs = {}
    for module in modules:
        own = model.base_model.get_submodule(module)
        rows, columns = own.weight.t().shape if isinstance(own, Conv1D) else own.weight.shape
        down, up = (torch.randn(shape, generator=generator) * 0.2 for shape in ((rank, columns), (rows, rank)))
        pairs[module] = LoraPair(down, up, 0.7)
    return Adapter(name, name, pairs)


def merged(model: Any, adapter: Adapter) -> Any:
    """The model with an adapter worked into its weights."""
    changed = copy_of(model)
    for module, pair in adapter.pairs.items():
        own = changed.base_model.get_submodule(module)
        change = pair.scale * pair.up @ pair.down
        own.weight.add_(change.t() if isinstance(own, Conv1D) else change)
    return changed
