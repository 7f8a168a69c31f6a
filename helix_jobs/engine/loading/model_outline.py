"""ModelOutline: a model as its configuration and the list of its files describe it; no weight is read or fetched."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import torch

from helix_jobs.engine.loading.checkpoint import STORED_DTYPES, Checkpoint, find_local_checkpoint, look_up_checkpoint
from helix_jobs.engine.loading.demo_model import DEMO_MODEL
from helix_jobs.engine.loading.gguf_hub import HubFile
from helix_jobs.engine.loading.hub import HubDescription, hub_description
from helix_jobs.engine.loading.layout import check_layout
from helix_jobs.engine.loading.model_sizes import model_sizes, sizes_of, skeleton
from helix_jobs.engine.loading.model_source import read_configuration, stated_layers
from helix_jobs.engine.loading.quantized_checkpoint import quantized_format
from helix_jobs.engine.loading.stored_tensor import StoredBlocks
from helix_jobs.engine.loading.tensor_names import check_layers
from helix_jobs.errors import ModelError, ModelNotFoundError, UnsupportedArchitectureError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from transformers import PretrainedConfig

    from helix_jobs.engine.loading.model_sizes import ModelSizes
    from helix_jobs.engine.loading.quantized_format import Grain

logger = logging.getLogger(__name__)

# No model has as many layers. transformers would make an object of each.
_MOST_LAYERS: Final = 1000
_NAMED_DTYPES: Final = ("float64", "float32", "float16", "bfloat16")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOutline:
    """A model that is served.

    Attributes:
        name: Its name as the user gave it.
        model_type: Its family, as config.json names it.
        stored: The dtype that most of its weights are stored in; None if they are quantised, or unknown.
        stored_name: Its name; that of the blocks (``Q4_K``) if they are quantised, that of the format if only this is
            known, and None if nothing is.
        file_bytes: Bytes of the files that hold its weights.
        is_here: Whether these are on this machine.
        sizes: How large it is.
        config: Its configuration.
    """

    name: str
    model_type: str
    stored: torch.dtype | None
    stored_name: str | None
    file_bytes: int
    is_here: bool
    sizes: ModelSizes
    config: PretrainedConfig

    @property
    def has_blocks(self) -> bool:
        """Whether its weights can be multiplied in blocks."""
        return self.sizes.blocks.weights > 0


def model_outline(name: str, home: Path) -> ModelOutline:
    """Look a model up, on this machine or on the hub.

    Args:
        name: A directory, a ``.gguf`` file, ``demo``, a hub id or ``OWNER/NAME:FILE.gguf``.
        home: HELIX_HOME; the demo model is kept under it.

    Raises:
        ModelNotFoundError: There is no such model, or it cannot be looked up.
        UnsupportedArchitectureError: The engine does not serve it; the message says why.
        ModelError: Its files are damaged.
    """
    found = find_local_checkpoint(name, home)
    if found is None and HubFile.parse(name) is not None:
        found = look_up_checkpoint(name, home, logger.debug)
    if found is not None:
        check_layers(name, stated_layers(found), found.tensors)
        config = read_configuration(found)
        model = skeleton(name, config)
        check_layout(name, config, model, found.tensors, is_gguf=found.gguf is not None)
        return ModelOutline(
            name=name,
            model_type=config.model_type,
            stored=found.dtype,
            stored_name=found.kind if found.dtype is None else _name_of(found.dtype),
            file_bytes=found.file_bytes,
            is_here=found.on_hub is None,
            sizes=sizes_of(found, config, model),
            config=config,
        )
    if name == DEMO_MODEL:
        raise ModelNotFoundError(
            "the demo model is not on this machine; start a worker once, which downloads it (93 MB)"
        )
    with hub_description(name) as described:
        return _from_hub(name, described)


def _from_hub(name: str, described: HubDescription) -> ModelOutline:
    if "adapter_config.json" in described.sizes:
        raise UnsupportedArchitectureError(
            f"model {name} has an adapter beside its weights (adapter_config.json); merge it into them "
            "(merge_and_unload of peft)"
        )
    weights = {file: size for file, size in described.sizes.items() if file.endswith(".safetensors")}
    if not weights:
        raise ModelNotFoundError(
            f"model {name} has no safetensors on the hub; convert it to safetensors, or choose another model"
        )
    quantized = quantized_format(name, described.settings)
    checkpoint = Checkpoint(name, described.folder, None, (), {}, described.settings, quantized=quantized)
    layers = stated_layers(checkpoint)
    if not isinstance(layers, int) or not 0 < layers <= _MOST_LAYERS:
        raise ModelError(f"model {name}: its configuration says {layers!r:.40} layers; choose another model")
    config = read_configuration(checkpoint, described.tensors)
    stored, sizes, file_bytes = _stored_dtype(described), model_sizes(name, config), sum(weights.values())
    stored_name = None if stored is None else _name_of(stored)
    if quantized is not None:
        stored, stored_name = None, quantized.name
        sizes = replace(sizes, blocks=_expected_blocks(sizes, file_bytes, quantized.grains))
    return ModelOutline(
        name=name,
        model_type=config.model_type,
        stored=stored,
        stored_name=stored_name,
        file_bytes=file_bytes,
        is_here=False,
        sizes=sizes,
        config=config,
    )


def _expected_blocks(sizes: ModelSizes, file_bytes: int, grains: Sequence[Grain]) -> StoredBlocks:
    """The blocks of a quantised checkpoint of which only the size of its files is known.

    Trade-off: all products but the head are taken as quantised, the rest as 16-bit numbers, and rows as the width of
    the residual stream. The headers would say it exactly, but stand in files of gigabytes.
    """
    matrices = sizes.products - sizes.decoded - sizes.vocab_size * sizes.hidden_size
    plain = (sizes.weights - matrices) * torch.bfloat16.itemsize
    growth = max(grain.growth(sizes.hidden_size) for grain in grains)
    return StoredBlocks(matrices, math.ceil(max(0, file_bytes - plain) * growth))


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _stored_dtype(described: HubDescription) -> torch.dtype | None:
    """The dtype of most weights as the hub counts them, else the one that config.json names."""
    if described.kinds:
        return STORED_DTYPES.get(max(described.kinds, key=lambda kind: described.kinds[kind]))
    named = described.settings.get("dtype", described.settings.get("torch_dtype"))
    dtype: torch.dtype | None = getattr(torch, named) if named in _NAMED_DTYPES else None
    return dtype
