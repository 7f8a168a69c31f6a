"""Checkpoints of AWQ, as the GEMM version of AutoAWQ writes them.

See Lin et al., "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration", MLSys 2024. Matrices
lie transposed, ``[inputs, outputs]``, and ``qweight`` and ``qzeros`` pack numbers of 4 bits along the outputs: of each
eight the even ones first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from helix_jobs.engine.loading.packed_bits import unpacked
from helix_jobs.engine.loading.quantized_format import (
    FLOATS,
    Grain,
    QuantizedMatrix,
    Scales,
    group_width,
    parts_of,
    refusal,
    stated,
)
from helix_jobs.engine.weights.level_layouts import INT4
from helix_jobs.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from helix_jobs.engine.loading.stored_tensor import StoredTensor

NAME: Final = "awq"
_GEMM: Final = "gemm"
_BITS: Final = 4
_EACH: Final = 8  # numbers of a word
# Where in its word each of eight neighbours stands.
_PLACES: Final = (0, 4, 1, 5, 2, 6, 3, 7)
_PARTS: Final = ("qweight", "scales", "qzeros")


class Awq:
    """The format of one checkpoint (satisfies ``QuantizedFormat``).

    Args:
        name: The model's name as the user gave it.
        settings: What config.json says of the quantisation.

    Raises:
        UnsupportedArchitectureError: It announces something that is not computed.
    """

    name = NAME
    rounds_activations = False
    turns_transposed = False
    stores_shapes = False

    def __init__(self, name: str, settings: Mapping[str, Any]) -> None:
        bits = settings.get("bits", settings.get("w_bit"))
        if type(bits) is not int or bits != _BITS:
            raise refusal(name, NAME, f"bits {bits!r:.40} in config.json")
        version = stated(name, NAME, settings, ("version", "format", "checkpoint_format"), _GEMM)
        if version != _GEMM:
            raise refusal(name, NAME, f"version {version!r:.40} in config.json")
        self._width = group_width(name, NAME, settings)

    @property
    def grains(self) -> tuple[Grain, ...]:
        """See ``QuantizedFormat``."""
        return (Grain(INT4, self._width, has_zeros=True),)

    def matrices(self, name: str, tensors: Mapping[str, StoredTensor]) -> dict[str, QuantizedMatrix]:
        """See ``QuantizedFormat``."""
        found = {}
        for tensor in tensors:
            module, _, part = tensor.rpartition(".")
            if part == "qweight":
                found[module] = _matrix(name, module, parts_of(tensors, module, _PARTS), self._width)
        return found

    def scales(self, subject: str, matrix: QuantizedMatrix, parts: Mapping[str, torch.Tensor]) -> Scales:
        """See ``QuantizedFormat``."""
        assert matrix.code == INT4, f"{subject}: this format has no other"
        return Scales(parts["scales"].float().t(), _in_order(parts["qzeros"]).t())

    def codes(self, matrix: QuantizedMatrix, parts: Mapping[str, torch.Tensor], rows: slice) -> torch.Tensor:
        """See ``QuantizedFormat``."""
        assert matrix.shape[0] % _EACH == rows.start % _EACH == 0, "a word is never cut"
        words = slice(rows.start // _EACH, rows.stop // _EACH)
        return _in_order(parts["qweight"][:, words]).t()


def _matrix(name: str, module: str, parts: Mapping[str, StoredTensor], group: int | None) -> QuantizedMatrix:
    codes, scales, zeros = (parts.get(part) for part in _PARTS)
    if codes is None or scales is None or zeros is None or {len(one.shape) for one in (codes, scales, zeros)} != {2}:
        raise ModelError(f"model {name} lacks a part of {module:.200}; fetch the model again")
    (columns, words), count = codes.shape, scales.shape[0]
    rows, width = words * _EACH, group or columns
    if (
        columns
        and rows
        and columns == count * width
        and scales.shape == (count, rows)
        and scales.kind in FLOATS
        and zeros.shape == (count, words)
        and (codes.kind, zeros.kind) == ("I32", "I32")
    ):
        return QuantizedMatrix(INT4, (rows, columns), (1, width), has_zeros=True, parts=parts)
    raise refusal(
        name,
        NAME,
        f"{module} is stored as {codes.kind} {list(codes.shape)} with scales {list(scales.shape)}, "
        "unlike config.json says",
    )


def _in_order(words: torch.Tensor) -> torch.Tensor:
    """Numbers packed along the last dimension, ``[n, words]`` int32 to ``[n, 8 * words]`` uint8."""
    # [n, words, 8]
    mixed: torch.Tensor = unpacked(words, _BITS).unflatten(1, (-1, _EACH))
    return mixed[:, :, list(_PLACES)].flatten(1)
