"""Checkpoints whose weights were quantised for another program: recognised by any sign, and read or refused by name.

Their numbers have a meaning only together with scales; a model that reads the numbers alone writes noise.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.engine.loading.auto_round_format import NAMES as AUTO_ROUND
from helix_jobs.engine.loading.auto_round_format import auto_round
from helix_jobs.engine.loading.awq_format import Awq
from helix_jobs.engine.loading.block_fp8_format import BlockFp8
from helix_jobs.engine.loading.compressed_tensors_format import CompressedTensors
from helix_jobs.engine.loading.gptq_format import Gptq
from helix_jobs.engine.loading.model_opt_format import ModelOptFp8
from helix_jobs.engine.loading.quantized_format import ORIGINAL
from helix_jobs.errors import UnsupportedArchitectureError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from helix_jobs.engine.loading.quantized_format import QuantizedFormat
    from helix_jobs.engine.loading.stored_tensor import StoredTensor

# Files beside config.json in which tools say so.
QUANTIZATION_FILES: Final = {
    "hf_quant_config.json": "ModelOpt",
    "quantize_config.json": "GPTQ",
    "quant_config.json": "AWQ",
}
# Keys of config.json in which tools say so. MLX's key is ``quantization``.
_CONFIG_KEYS: Final = {
    "quantization_config": "quantization_config",
    "compression_config": "compressed-tensors",
    "quantization": "MLX",
}
# Names of the tensors that go with the numbers: GPTQ and AWQ, bitsandbytes, FP8 and int8, compressed-tensors, MLX.
_PARTS: Final = re.compile(
    r"\.(qweight|qzeros|scales|g_idx|SCB|weight_format|absmax|quant_map|nested_absmax|nested_quant_map|quant_state\..*"
    r"|weight\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\..*)"
    r"|(weight|input|output|activation|[qkv])_?(scale|scale_inv|scale_2|global_scale|zero_point|packed|shape|g_idx)"
    r"|scale|scale_inv|zero_point|biases)\Z"
)
# A weight that has the name of such a tensor (Gemma 4's routers). A model without it does not read it, and is refused.
_WEIGHTS: Final = (".router.scale",)
FLOAT_KINDS: Final = frozenset({"F64", "F32", "F16", "BF16"})
# Formats that are read, by their quant_method.
_READ: Final[Mapping[str, Callable[[str, Mapping[str, Any]], QuantizedFormat]]] = {
    CompressedTensors.name: CompressedTensors,
    BlockFp8.name: BlockFp8,
    Gptq.name: Gptq,
    Awq.name: Awq,
    ModelOptFp8.name: ModelOptFp8,
    **dict.fromkeys(AUTO_ROUND, auto_round),
}
_READ_KEYS: Final = ("quantization_config", "compression_config")


def quantized_format(name: str, config: Mapping[str, Any]) -> QuantizedFormat | None:
    """The format that config.json announces, if it is one that is read.

    Args:
        name: The model's name as the user gave it.
        config: The content of its config.json.

    Raises:
        UnsupportedArchitectureError: The format is read, but not this form of it.
    """
    for key in _READ_KEYS:
        settings = config.get(key)
        if not isinstance(settings, dict):
            continue
        made = _READ.get(str(settings.get("quant_method")))
        if made is not None:
            return made(name, settings)
    return None


def without_quantization(config: Mapping[str, Any]) -> dict[str, Any]:
    """The content of config.json without a quantisation that is read."""
    return {key: value for key, value in config.items() if key not in _READ_KEYS}


def check_not_quantized(
    name: str,
    folder: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, StoredTensor],
    harmless: Iterable[str],
    *,
    read: str | None = None,
) -> None:
    """Refuse a directory whose weights are not plain floating-point numbers.

    Args:
        name: The model's name as the user gave it.
        folder: The model's directory.
        config: The content of its config.json.
        tensors: The tensors in its files.
        harmless: Tensors that are never needed, of any type.
        read: The name of the format in which its quantised matrices are read, or None.

    Raises:
        UnsupportedArchitectureError: The message names the quantisation and where it was found.
    """
    for key, method in _CONFIG_KEYS.items():
        if settings := config.get(key):
            said = settings.get("quant_method", settings.get("method")) if isinstance(settings, dict) else None
            raise _refusal(name, str(said or method), f"{key} in config.json")
    for file, method in QUANTIZATION_FILES.items():
        path = folder / file
        if path.exists():
            tool = _named_in(path) or method
            if tool.lower() != read:
                raise _refusal(name, tool, file)
    unneeded = set(harmless)
    for tensor, stored in tensors.items():
        if stored.kind not in FLOAT_KINDS and tensor not in unneeded:
            raise _refusal(name, f"a method that stores {stored.kind}", f"the tensor {tensor}")
    for tensor in tensors:
        if is_part_of_quantized(tensor):
            raise _refusal(name, "a method that config.json does not name", f"the tensor {tensor}")


def _named_in(path: Path) -> str | None:
    """The ``quant_method`` in a tool's file: GPTQModel gives its file one name, whichever it is."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return None
    found = content.get("quant_method") if isinstance(content, dict) else None
    return found if isinstance(found, str) else None


def is_part_of_quantized(tensor: str) -> bool:
    """Whether a tensor of this name goes with quantised numbers, such as their scales."""
    return _PARTS.search(tensor) is not None and not tensor.endswith(_WEIGHTS)


def _refusal(name: str, method: str, place: str) -> UnsupportedArchitectureError:
    return UnsupportedArchitectureError(f"model {name} is quantised with {method:.100} ({place:.200}); {ORIGINAL}")
