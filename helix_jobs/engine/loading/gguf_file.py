"""GgufFile: what a .gguf file says of its model, checked before a weight is read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from helix_jobs.engine.loading.gguf_config import LONG_FACTORS, ROTARY_FACTORS, SHORT_FACTORS
from helix_jobs.engine.loading.gguf_parts import gguf_tensors, read_gguf_parts
from helix_jobs.engine.loading.gguf_registry import GGUF_ARCHITECTURES, SERVED_OTHERWISE, family_of
from helix_jobs.engine.loading.gguf_settings import DRAFT_LAYERS, KEY_HEADS, check_heads, check_settings, unread
from helix_jobs.engine.loading.gguf_tensors import Heads, weights_of, without_draft_layers
from helix_jobs.engine.loading.stored_tensor import StoredTensor
from helix_jobs.errors import ModelError, UnsupportedArchitectureError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from helix_jobs.engine.loading.gguf_family import GgufFamily
    from helix_jobs.engine.loading.gguf_header import GgufHeader
    from helix_jobs.engine.loading.gguf_tensors import GgufTensor, GgufWeight

_ORIGINAL: Final = "rope.scaling.original_context_length"
# Of a pair that is not rotated.
_ENDLESS: Final = 1e30
# Types stored as plain numbers; every other type consists of blocks that the gguf package must know how to decode.
_PLAIN: Final = ("F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class GgufFile:
    """A file that can be served.

    Attributes:
        files: The file, or all its parts.
        architecture: The file's name for its model family.
        family: How that family's files are read.
        num_layers: Number of its layers, without those that only draft.
        weights: The parameters of transformers' model that its tensors make.
        tensors: Their types and shapes, as transformers' model has them.
        vocabulary: Its settings that begin with ``tokenizer.``, without that prefix.
        rotary: Float32 divisors of the inverse frequencies, ``[rotated dimensions / 2]``, by their tensors' names.
        head_dim: Width of a head.
        num_kv_heads: Number of key-value heads, in layers that have any.
        listed: Parameters of transformers' model that are one number each, and stand among the file's settings.
        settings: Settings of its architecture, without that prefix.
    """

    files: tuple[Path, ...]
    architecture: str
    family: GgufFamily
    num_layers: int
    weights: Mapping[str, GgufWeight]
    tensors: Mapping[str, StoredTensor]
    vocabulary: Mapping[str, Any]
    rotary: Mapping[str, torch.Tensor]
    head_dim: int
    num_kv_heads: int
    listed: Mapping[str, float]
    settings: Mapping[str, Any]

    @property
    def heads(self) -> Heads:
        """Those of its layers with attention."""
        return Heads(self.settings["attention.head_count"], self.num_kv_heads, self.head_dim)


def read_gguf(name: str, path: Path) -> GgufFile:
    """Read the header.

    Args:
        name: The model's name as the user gave it.
        path: An existing file, or any part of one that was split.

    Raises:
        ModelError: The file is damaged, not GGUF, or a part of a model whose other parts are not there.
        UnsupportedArchitectureError: Its weights or settings would not be read in full.
    """
    headers = read_gguf_parts(name, path)
    header = headers[0]
    _check_kind(name, header)
    architecture = header.settings["general.architecture"]
    settings = _without_prefix(header.settings, f"{architecture}.")
    tensors = gguf_tensors(name, headers)
    family = family_of(architecture, settings, tensors)
    check_settings(name, architecture, family, settings)
    heads = settings["attention.head_count"]
    head_dim = settings.get(f"attention.key_length{family.local}") or settings["embedding_length"] // heads
    check_heads(name, architecture, family, settings, head_dim)
    rotary = _rotary(name, family, tensors, settings.get("rope.dimension_count") or head_dim)
    if not family.states_original:
        settings.setdefault(_ORIGINAL, settings["context_length"])
    if SHORT_FACTORS in rotary and not isinstance(settings.get(_ORIGINAL), int):
        raise ModelError(f"model {name}: the GGUF file lacks {architecture}.{_ORIGINAL}; fetch it again")
    for tensor in rotary:
        del tensors[tensor]
    num_layers = settings["block_count"]
    if settings.get(DRAFT_LAYERS):
        num_layers -= settings[DRAFT_LAYERS]
        tensors = without_draft_layers(tensors, num_layers)
    _check_types(name, {tensor.stored.kind for tensor in tensors.values()})
    stated = settings.get(KEY_HEADS, heads)
    kv_heads = max(stated) if isinstance(stated, list) else stated
    weights = weights_of(family, tensors, Heads(heads, kv_heads, head_dim))
    listed = {
        f"{family.layers}.{layer}.{parameter}": (number, source.shape)
        for parameter, source in family.listed.items()
        for layer, number in enumerate(_numbers(name, source.setting, header.settings, num_layers))
    }
    return GgufFile(
        files=tuple(one.path for one in headers),
        architecture=architecture,
        family=family,
        num_layers=num_layers,
        weights=weights,
        tensors={
            **{parameter: weight.stored for parameter, weight in weights.items()},
            **{parameter: StoredTensor("F32", shape) for parameter, (_, shape) in listed.items()},
        },
        vocabulary=_without_prefix(header.settings, "tokenizer."),
        rotary=rotary,
        head_dim=head_dim,
        num_kv_heads=kv_heads,
        listed={parameter: number for parameter, (number, _) in listed.items()},
        settings=settings,
    )


def _without_prefix(settings: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {key.removeprefix(prefix): value for key, value in settings.items() if key.startswith(prefix)}


def _numbers(name: str, setting: str, settings: Mapping[str, Any], count: int) -> list[float]:
    """A list of one number for each layer."""
    found = settings.get(setting)
    if (
        not isinstance(found, list)
        or len(found) != count
        or not all(isinstance(number, float) and math.isfinite(number) for number in found)
    ):
        raise ModelError(f"model {name}: the GGUF file has no {setting} for each of its {count} layers; fetch it again")
    return found


def _rotary(name: str, family: GgufFamily, tensors: Mapping[str, GgufTensor], rotated: int) -> dict[str, torch.Tensor]:
    """The tensors of factors that the family's files may have, for each pair of rotated dimensions.

    Raises:
        ModelError: Their numbers are none of a model's.
    """
    wanted = [ROTARY_FACTORS] if family.has_frequencies else []
    if "longrope" in family.scalings:
        wanted += [LONG_FACTORS, SHORT_FACTORS]
    found = {}
    for tensor in wanted:
        found_there = tensors.get(tensor)
        if found_there is None:
            continue
        stored = found_there.stored
        if stored.kind != "F32" or stored.shape != (rotated // 2,):
            raise ModelError(
                f"model {name}: {tensor} does not fit its heads ({stored.kind} {list(stored.shape)}, not F32 "
                f"[{rotated // 2}]); fetch the GGUF file again"
            )
        factors = torch.from_numpy(found_there.floats())
        if not (torch.isfinite(factors) & (factors > 0)).all():
            raise ModelError(f"model {name}: {tensor} has impossible numbers; fetch the GGUF file again")
        if family.has_frequencies == "proportional" and not _is_proportional(factors):
            raise unread(name, f"the numbers of {tensor}, neither one nor {_ENDLESS}, cannot be read from a GGUF file")
        found[tensor] = factors
    if (SHORT_FACTORS in found) != (LONG_FACTORS in found):
        raise ModelError(f"model {name} has one of {LONG_FACTORS} and {SHORT_FACTORS} alone; fetch the GGUF file again")
    return found


def _is_proportional(factors: torch.Tensor) -> bool:
    """Whether the first pairs are rotated as usual, and the others not at all."""
    rotated = int((factors == 1).sum())
    return bool((factors[:rotated] == 1).all()) and bool((factors[rotated:] >= _ENDLESS).all())


def _check_kind(name: str, header: GgufHeader) -> None:
    """Refuse files that are not one whole model of a known architecture."""
    settings = header.settings
    kind = settings.get("general.type", "model")
    if kind != "model":
        raise unread(name, f"the GGUF file holds no model but something of the type {kind!r:.40}")
    architecture = settings.get("general.architecture")
    if architecture not in GGUF_ARCHITECTURES:
        what = f"a GGUF file of the architecture {architecture!r:.40}"
        known = f"of GGUF, supported are {', '.join(GGUF_ARCHITECTURES)}"
        if architecture in SERVED_OTHERWISE:
            raise unread(name, f"{what} cannot be read in full ({known})")
        raise UnsupportedArchitectureError(f"model {name}: {what} cannot be served; {known}")


def _check_types(name: str, kinds: set[str]) -> None:
    """Refuse types of blocks that the installed gguf package cannot decode."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

    for kind in kinds - set(_PLAIN):
        try:
            number = GGMLQuantizationType[kind]
            dequantize(np.zeros((1, GGML_QUANT_SIZES[number][1]), dtype=np.uint8), number)
        except (KeyError, NotImplementedError) as error:  # KeyError: the package does not know the type at all
            raise unread(name, f"weights stored as {kind} cannot be read from a GGUF file") from error
