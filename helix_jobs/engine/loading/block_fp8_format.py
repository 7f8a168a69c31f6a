"""Checkpoints of block FP8 (DeepSeek V3's format, which Qwen3-FP8 and transformers' ``FineGrainedFP8Config`` share).

A weight is stored as E4M3 numbers, and ``weight_scale_inv`` has the factor of each block of rows and columns, usually
128 x 128, or one for the whole matrix (DeepSeek-AI, "DeepSeek-V3 Technical Report", 2024, section 3.3). AutoFP8 calls
the one factor ``weight_scale``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch

from helix_jobs.engine.loading.quantized_format import FLOATS, Grain, QuantizedMatrix, Scales, parts_of, refusal
from helix_jobs.engine.weights.level_layouts import FP8
from helix_jobs.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from helix_jobs.engine.loading.stored_tensor import StoredTensor

NAME: Final = "fp8"
_SCALE: Final = "weight_scale_inv"
# AutoFP8's name of the factor of a whole matrix.
_WHOLE_SCALE: Final = "weight_scale"


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
    turns_transposed = False
    stores_shapes = False
    # What only serves to quantise activations.
    passed_over: tuple[str, ...] = ("activation_scale", "input_scale")

    def __init__(self, name: str, settings: Mapping[str, Any]) -> None:
        if (kind := settings.get("fmt", "e4m3")) != "e4m3":
            raise refusal(name, NAME, f"fmt {kind!r:.40} in config.json")
        block = settings.get("weight_block_size", [128, 128])
        is_pair = isinstance(block, list) and [type(one) for one in block] == [int, int] and min(block) > 0
        if block is not None and not is_pair:
            raise refusal(name, NAME, f"weight_block_size {block!r:.40} in config.json")
        self._tile: tuple[int, int] | None = None if block is None else (block[0], block[1])
        self._states_block = settings.get("weight_block_size") is not None

    @property
    def grains(self) -> tuple[Grain, ...]:
        """See ``QuantizedFormat``."""
        return (Grain(FP8, None if self._tile is None else self._tile[1], has_zeros=False),)

    def matrices(self, name: str, tensors: Mapping[str, StoredTensor]) -> dict[str, QuantizedMatrix]:
        """See ``QuantizedFormat``."""
        found = {}
        for tensor, stored in tensors.items():
            module, _, part = tensor.rpartition(".")
            if part == "weight" and stored.kind == "F8_E4M3":
                wanted = ("weight", _SCALE, _WHOLE_SCALE, *self.passed_over)
                found[module] = self._matrix(name, module, parts_of(tensors, module, wanted))
        return found

    def _matrix(self, name: str, module: str, parts: Mapping[str, StoredTensor]) -> QuantizedMatrix:
        stored, by_block, whole = parts["weight"], parts.get(_SCALE), parts.get(_WHOLE_SCALE)
        scale = by_block or whole
        if scale is None or len(stored.shape) != 2 or 0 in stored.shape:  # noqa: PLR2004  (rows and columns)
            raise ModelError(f"model {name}: {module:.200} lacks its scales; fetch the model again")
        rows, columns = stored.shape
        is_whole = by_block is None and not self._states_block
        tile = None if is_whole else self._tile
        matrix = QuantizedMatrix(FP8, (rows, columns), tile or (rows, columns), has_zeros=False, parts=parts)
        fits = scale.elements == 1 if tile is None else by_block is not None and scale.shape == matrix.scale_shape
        if fits and scale.kind in FLOATS and (by_block is None or whole is None):
            return matrix
        said = _SCALE if by_block is not None else _WHOLE_SCALE
        raise refusal(
            name,
            self.name,
            f"{module} of {list(stored.shape)} ({said} {scale.kind}) has scales {list(scale.shape)}, "
            "unlike config.json says",
        )

    def scales(self, subject: str, matrix: QuantizedMatrix, parts: Mapping[str, torch.Tensor]) -> Scales:
        """See ``QuantizedFormat``."""
        scale = parts[_SCALE] if _SCALE in parts else parts[_WHOLE_SCALE]
        assert matrix.code == FP8, f"{subject}: this format has no other"
        return Scales(scale.float().reshape(matrix.scale_shape))

    def codes(self, matrix: QuantizedMatrix, parts: Mapping[str, torch.Tensor], rows: slice) -> torch.Tensor:
        """See ``QuantizedFormat``."""
        assert matrix.code == FP8, "this format has no other"
        return parts["weight"][rows].view(torch.uint8)
