"""GgufFile: what a .gguf file says and transformers' reader does not report.

The reader takes names and settings from a fixed list. It silently drops everything else: rotary scaling, sliding
windows, experts. Such a model would write fluent text that is not its own. So a file is refused for every setting of
its architecture that is not read here, unless the setting has a value that changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from helix_jobs.engine.loading.gguf_experts import (
    EXPERT_COUNTS,
    FAMILIES_WITH_EXPERTS,
    check_expert_settings,
    neutral_expert_settings,
)
from helix_jobs.engine.loading.gguf_header import GgufHeader, read_gguf_header
from helix_jobs.engine.loading.gguf_names import GGUF_ARCHITECTURES, stacks_of, transformers_name, transformers_tensors
from helix_jobs.errors import ModelError, UnsupportedArchitectureError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from helix_jobs.engine.loading.stored_tensor import StoredTensor

_ROTARY_FACTORS: Final = "rope_freqs.weight"
# If one of these is missing, transformers would take the value of some checkpoint of the family.
_NEEDED: Final = ("block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count")
# If it is missing, every head has its own keys and values.
_KEY_HEADS: Final = "attention.head_count_kv"
_COUNTS: Final = (
    *_NEEDED,
    *(_KEY_HEADS, "attention.key_length", "attention.value_length", "rope.dimension_count"),
    *("attention.sliding_window", "vocab_size"),
    *EXPERT_COUNTS,
)
_NORM_EPSILONS: Final = {"gpt2": "attention.layer_norm_epsilon"}
_RMS_EPSILON: Final = "attention.layer_norm_rms_epsilon"
_FLOATS: Final = ("rope.freq_base", _RMS_EPSILON, "attention.layer_norm_epsilon")
# Architectures that are served, but not from a GGUF file.
_SERVED_OTHERWISE: Final = ("gemma", "gptneox", "deepseek2", "minicpm3")
# Settings that change nothing at these values, and mean nothing while positions are not scaled.
_NEUTRAL: Final[dict[str, tuple[object, ...]]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0.0,),
    "attention.scale": (0.0,),
    "attn_logit_softcapping": (0.0,),
    "final_logit_softcapping": (0.0,),
    "logit_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "embedding_scale": (0.0, 1.0),
    "use_parallel_residual": (False,),
}
_REMARKS: Final = ("tensor_data_layout", "rope.scaling.original_context_length", "rope.scaling.finetuned")
# Types stored as plain numbers; every other type consists of blocks that the gguf package must know how to decode.
_PLAIN: Final = ("F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class GgufFile:
    """A file that can be served.

    Attributes:
        path: The file.
        architecture: The file's name for its model family.
        num_layers: Number of layers that the file states.
        tensors: Its tensors, under transformers' names and in transformers' shapes.
        places: Offset of each tensor's bytes in the file.
        row_lengths: Number of weights in a row of each tensor, as the file stores it.
        vocabulary: Its settings that begin with ``tokenizer.``, without that prefix.
        rotary_factors: ``[head_dim / 2]`` float32 divisors of the inverse frequencies (Llama 3.1), or None.
        sliding_window: The attention window, or None.
        head_dim: Width of a head.
        num_kv_heads: Number of key-value heads.
        settings: Settings of its architecture, without that prefix.
        stacks: Parameters of experts among ``tensors``, and the file's tensors of which each consists.
        stacked: These, under the file's names, which ``places`` and ``row_lengths`` have as well.
    """

    path: Path
    architecture: str
    num_layers: int
    tensors: Mapping[str, StoredTensor]
    places: Mapping[str, int]
    row_lengths: Mapping[str, int]
    vocabulary: Mapping[str, Any]
    rotary_factors: torch.Tensor | None
    sliding_window: int | None
    head_dim: int
    num_kv_heads: int
    settings: Mapping[str, Any]
    stacks: Mapping[str, tuple[str, ...]]
    stacked: Mapping[str, StoredTensor]

    @property
    def has_experts(self) -> bool:
        """Whether it is of a family with experts."""
        return bool(self.settings.get("expert_count"))


def read_gguf(name: str, path: Path) -> GgufFile:
    """Read the header.

    Args:
        name: The model's name as the user gave it.
        path: An existing file.

    Raises:
        ModelError: The file is damaged, not GGUF, or only a part of a model.
        UnsupportedArchitectureError: Its weights or settings would not be read in full.
    """
    header = read_gguf_header(name, path)
    _check_kind(name, header)
    architecture = header.settings["general.architecture"]
    prefix = f"{architecture}."
    settings = {key.removeprefix(prefix): value for key, value in header.settings.items() if key.startswith(prefix)}
    _check_settings(name, architecture, settings)
    heads = settings["attention.head_count"]
    head_dim = settings.get("attention.key_length") or settings["embedding_length"] // heads
    window = settings.get("attention.sliding_window") or None
    _check_heads(name, architecture, settings, head_dim)
    tensors = dict(header.tensors)
    factors = None
    if architecture == "llama" and _ROTARY_FACTORS in tensors:
        stored = tensors.pop(_ROTARY_FACTORS)
        if stored.kind != "F32" or stored.shape != (head_dim // 2,):
            raise ModelError(f"model {name}: {_ROTARY_FACTORS} does not fit its heads; fetch the GGUF file again")
        factors = torch.from_numpy(header.floats(_ROTARY_FACTORS))
        if not (torch.isfinite(factors) & (factors > 0)).all():
            raise ModelError(f"model {name}: {_ROTARY_FACTORS} has impossible numbers; fetch the GGUF file again")
    _check_types(name, tensors)
    stacks = stacks_of(architecture, tensors)
    return GgufFile(
        path=path,
        architecture=architecture,
        num_layers=settings["block_count"],
        tensors=transformers_tensors(architecture, tensors),
        places={transformers_name(architecture, tensor): header.places[tensor] for tensor in tensors},
        row_lengths={transformers_name(architecture, tensor): one.shape[-1] for tensor, one in tensors.items()},
        vocabulary={
            key.removeprefix("tokenizer."): value
            for key, value in header.settings.items()
            if key.startswith("tokenizer.")
        },
        rotary_factors=factors,
        sliding_window=window,
        head_dim=head_dim,
        num_kv_heads=settings.get(_KEY_HEADS, heads),
        settings=settings,
        stacks=stacks,
        stacked={part: tensors[part] for parts in stacks.values() for part in parts},
    )


def _unread(name: str, what: str) -> UnsupportedArchitectureError:
    return UnsupportedArchitectureError(f"model {name}: {what}; use the model's safetensors")


def _check_kind(name: str, header: GgufHeader) -> None:
    """Refuse files that are not one whole model of a known architecture."""
    settings = header.settings
    count, number = settings.get("split.count", 0), settings.get("split.no", 0)
    if count not in (0, 1):
        raise ModelError(
            f"model {name} is part {number + 1 if isinstance(number, int) else number!r:.40} of {count!r:.40} of a "
            "split GGUF file; merge the parts (llama-gguf-split --merge FIRST-PART MERGED) and give the merged file"
        )
    kind = settings.get("general.type", "model")
    if kind != "model":
        raise _unread(name, f"the GGUF file holds no model but something of the type {kind!r:.40}")
    architecture = settings.get("general.architecture")
    if architecture not in GGUF_ARCHITECTURES:
        what = f"a GGUF file of the architecture {architecture!r:.40}"
        known = f"of GGUF, supported are {', '.join(GGUF_ARCHITECTURES)}"
        if architecture in _SERVED_OTHERWISE:
            raise _unread(name, f"{what} cannot be read in full ({known})")
        raise UnsupportedArchitectureError(f"model {name}: {what} cannot be served; {known}")
    has_experts = settings.get(f"{architecture}.expert_count", 0) != 0
    if has_experts and architecture not in FAMILIES_WITH_EXPERTS:
        raise _unread(
            name, f"experts ({architecture}.expert_count) cannot be read from a GGUF file of this architecture"
        )


def _check_settings(name: str, architecture: str, settings: Mapping[str, Any]) -> None:
    """Refuse settings that are missing, impossible, or not read here."""
    epsilon = _NORM_EPSILONS.get(architecture, _RMS_EPSILON)
    if missing := [key for key in (*_NEEDED, epsilon) if key not in settings]:
        raise ModelError(f"model {name}: the GGUF file lacks {architecture}.{missing[0]}; fetch it again")
    has_experts = check_expert_settings(name, architecture, settings)
    for key in _COUNTS:
        value = settings.get(key, 1)
        if isinstance(value, list):
            raise _unread(name, f"the setting {key}, one for each layer, cannot be read from a GGUF file")
        may_be_zero = key not in (*_NEEDED, _KEY_HEADS)
        if type(value) is not int or not (0 < value < 2**31 or (may_be_zero and value == 0)):
            raise ModelError(f"model {name}: the GGUF file says {key} {value!r:.40}; fetch it again")
    for key in _FLOATS:
        value = settings.get(key, 1.0)
        if not isinstance(value, float) or not 0 <= value < float("inf"):
            raise ModelError(f"model {name}: the GGUF file says {key} {value!r:.40}; fetch it again")
    scaling, factor = settings.get("rope.scaling.type"), settings.get("rope.scaling.factor")
    linear = settings.get("rope.scale_linear", factor)
    # llama.cpp scales linearly if no type is given; older files have the factor under the older name.
    if scaling not in (None, "none", "linear") or (scaling != "none" and linear not in (None, 0.0, 1.0)):
        raise _unread(
            name, f"the scaling of positions ({scaling or f'linear, {linear!r:.40}'}) cannot be read from a GGUF file"
        )
    neutral = {**_NEUTRAL, **neutral_expert_settings(architecture, has_experts=has_experts)}
    read = {*_COUNTS, *_FLOATS, *_REMARKS, "rope.scaling.type", "rope.scaling.factor", "rope.scale_linear"}
    read -= set(neutral)
    for key, value in settings.items():
        if key not in read and value not in neutral.get(key, ()):
            raise _unread(name, f"the setting {architecture}.{key} ({value!r:.40}) cannot be read from a GGUF file")


def _check_heads(name: str, architecture: str, settings: Mapping[str, Any], head_dim: int) -> None:
    rotated = settings.get("rope.dimension_count") or head_dim
    if rotated != head_dim and architecture != "gpt2":
        raise _unread(name, "that heads are rotated in part cannot be read from a GGUF file")
    if (settings.get("attention.value_length") or head_dim) != head_dim:
        raise _unread(name, "heads whose values are not as wide as their keys are not supported")
    window = settings.get("attention.sliding_window") or None
    if window is not None and window < settings["context_length"] and architecture != "phi3":
        raise _unread(name, f"a sliding window ({window}) cannot be read from a GGUF file of a {architecture} model")


def _check_types(name: str, tensors: Mapping[str, StoredTensor]) -> None:
    """Refuse types of blocks that the installed gguf package cannot decode."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

    for kind in {tensor.kind for tensor in tensors.values()} - set(_PLAIN):
        try:
            number = GGMLQuantizationType[kind]
            dequantize(np.zeros((1, GGML_QUANT_SIZES[number][1]), dtype=np.uint8), number)
        except (KeyError, NotImplementedError) as error:  # KeyError: the package does not know the type at all
            raise _unread(name, f"weights stored as {kind} cannot be read from a GGUF file") from error
