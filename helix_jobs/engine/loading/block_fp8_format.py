"""Checkpoints of block FP8 (DeepSeek V3's format, which Qwen3-FP8 and transformers' ``FineGrainedFP8Config`` share).

A weight is stored as E4M3 numbers, and ``weight_scale_inv`` has the factor of each block of rows and columns, usually
128 x 128, or one for the whole matrix (DeepSeek-AI, "DeepSeek-V3 Technical Report", 2024, section 3.3).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch

from helix_jobs.engine.loading.quantized_format import QuantizedMatrix, Scales, refusal
from helix_jobs.engine.weights.level_layouts import FP8
from helix_jobs.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from helix_jobs.engine.loading.stored_tensor import StoredTensor

NAME: Final = "fp8"
_SCALE: Final = "weight_scale_inv"
# What only serves to quantise activations.
_OF_ACTIVATIONS: Final = ("activation_scale", "input_scale")
_FLOATS: Final = ("F32", "F16", "BF16")


class BlockFp8:
    """The format of one checkpoint (satisfies ``QuantizedFormat``).

    Its own programs round activations to FP8 in any case.

    Args:
        name: The model's name as the user gave it.
        settings: What config.json says of the quantisation.

    Raises:
        UnsupportedArchitectureError: It announces something that is not computed.
    """

    name = NAME
    rounds_activations = True

    def __init__(self, name: str, settings: Mapping[str, Any]) -> None:
        if (kind := settings.get("fmt", "e4m3")) != "e4m3":
            raise refusal(name, NAME, f"fmt {kind!r:.40} in config.json")
        block = settings.get("weight_block_size", [128, 128])
        is_pair = isinstance(block, list) and [type(one) for one in block] == [int, int] and min(block) > 0
        if block is not None and not is_pair:
            raise refusal(name, NAME, f"weight_block_size {block!r:.40} in config.json")
        self._tile: tuple[int, int] | None = None if block is None else (block[0], block[1])

    def matrices(self, name: str, tensors: Mapping[str, StoredTensor]) -> dict[str, QuantizedMatrix]:
        """See ``QuantizedFormat``."""
        found = {}
        for tensor, stored in tensors.items():
            module, _, part = tensor.rpartition(".")
            if part == "weight" and stored.kind == "F8_E4M3":
                wanted = ("weight", _SCALE, *_OF_ACTIVATIONS)
                parts = {one: tensors[f"{module}.{one}"] for one in wanted if f"{module}.{one}" in tensors}
                found[module] = self._matrix(name, module, parts)
        return found

    def _matrix(self, name: str, module: str, parts: Mapping[str, StoredTensor]) -> QuantizedMatrix:
        stored, scale = parts["weight"], parts.get(_SCALE)
        if scale is None or len(stored.shape) != 2 or 0 in stored.shape or scale.kind not in _FLOATS:  # noqa: PLR2004  (rows and columns)
            raise ModelError(f"model {name}: {module:.200} lacks its scales; fetch the model again")
        rows, columns = stored.shape
        tile = self._tile or (rows, columns)
        matrix = QuantizedMatrix(FP8, (rows, columns), tile, has_zeros=False, parts=parts)
        if scale.shape == matrix.scale_shape or (self._tile is None and scale.elements == 1):
            return matrix
        raise refusal(
            name, NAME, f"{module} of {list(stored.shape)} has scales {list(scale.shape)}, unlike config.json says"
        )

    def scales(self, matrix: QuantizedMatrix, parts: Mapping[str, torch.Tensor]) -> Scales:
        """See ``QuantizedFormat``."""
        return Scales(parts[_SCALE].float().reshape(matrix.scale_shape))

    def codes(self, matrix: QuantizedMatrix, parts: Mapping[str, torch.Tensor], rows: slice) -> torch.Tensor:
        """See ``QuantizedFormat``."""
        assert matrix.code == FP8, "this format has no other"
        return parts["weight"][rows].view(torch.uint8)
