"""Checkpoints of GPTQ, as AutoGPTQ and GPTQModel write them.

See Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", ICLR 2023.
Matrices lie transposed, ``[inputs, outputs]``. ``qweight`` packs codes along the inputs, ``qzeros`` zero points along
the outputs; ``scales`` has a row for each group of inputs, and ``g_idx`` says which group each input belongs to. The
first version of the format stores zero points minus one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from helix_jobs.engine.loading.packed_bits import WORD_BITS, unpacked
from helix_jobs.engine.loading.quantized_format import (
    BITS,
    FLOATS,
    Grain,
    QuantizedMatrix,
    Scales,
    group_width,
    parts_of,
    refusal,
    stated,
)
from helix_jobs.engine.weights.level_layouts import INT4, INT8
from helix_jobs.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from helix_jobs.engine.loading.stored_tensor import StoredTensor

NAME: Final = "gptq"
_CODES: Final = {4: INT4, 8: INT8}
_PARTS: Final = ("qweight", "scales", "qzeros", "g_idx")
_FIRST, _SECOND = "gptq", "gptq_v2"  # the format's two versions


class Gptq:
    """The format of one checkpoint (satisfies ``QuantizedFormat``).

    Args:
        name: The model's name as the user gave it.
        settings: What config.json says of the quantisation.

    Raises:
        UnsupportedArchitectureError: It announces something that is not computed.
    """

    name = NAME
    rounds_activations = False
    turns_transposed = True
    stores_shapes = False

    def __init__(self, name: str, settings: Mapping[str, Any]) -> None:
        version = stated(name, NAME, settings, ("checkpoint_format", "format"), _FIRST)
        if version not in (_FIRST, _SECOND) or settings.get("is_marlin_format"):
            raise refusal(name, NAME, f"checkpoint_format {version!r:.40} in config.json")
        bits = settings.get("bits")
        if type(bits) is not int or bits not in _CODES:
            raise refusal(name, NAME, f"bits {bits!r:.40} in config.json")
        self._bits = bits
        self._width = group_width(name, NAME, settings)
        self._is_first = version == _FIRST

    @property
    def grains(self) -> tuple[Grain, ...]:
        """See ``QuantizedFormat``."""
        return (Grain(_CODES[self._bits], self._width, has_zeros=True),)

    def matrices(self, name: str, tensors: Mapping[str, StoredTensor]) -> dict[str, QuantizedMatrix]:
        """See ``QuantizedFormat``."""
        found = {}
        for tensor in tensors:
            module, _, part = tensor.rpartition(".")
            if part == "qweight":
                found[module] = self._matrix(name, module, parts_of(tensors, module, _PARTS))
        return found

    def _matrix(self, name: str, module: str, parts: Mapping[str, StoredTensor]) -> QuantizedMatrix:
        codes, scales, zeros, groups = (parts.get(part) for part in _PARTS)
        if (
            codes is None
            or scales is None
            or zeros is None
            or {len(one.shape) for one in (codes, scales, zeros)} != {2}
        ):
            raise ModelError(f"model {name} lacks a part of {module:.200}; fetch the model again")
        words, rows = codes.shape
        bits, columns, count = self._bits, words * WORD_BITS // self._bits, scales.shape[0]
        width = self._width or columns
        if (
            columns
            and rows
            and columns == count * width
            and scales.shape == (count, rows)
            and scales.kind in FLOATS
            and zeros.shape == (count, rows * bits // WORD_BITS)
            and rows * bits % WORD_BITS == 0
            and (codes.kind, zeros.kind) == ("I32", "I32")
            and (groups is None or (groups.kind in ("I32", "I64") and groups.shape == (columns,)))
        ):
            return QuantizedMatrix(
                _CODES[bits], (rows, columns), (1, width), has_zeros=True, parts=parts, has_order=groups is not None
            )
        raise refusal(
            name,
            NAME,
            f"{module} is stored as {codes.kind} {list(codes.shape)} with scales {list(scales.shape)}, "
            "unlike config.json says",
        )

    def scales(self, subject: str, matrix: QuantizedMatrix, parts: Mapping[str, torch.Tensor]) -> Scales:
        """See ``QuantizedFormat``."""
        bits = BITS[matrix.code]
        zeros = unpacked(parts["qzeros"], bits)
        if self._is_first:
            # Minus one they were packed as ones in all bits, over the numbers beside them, and programs part on what
            # that means.
            if bool((zeros == (1 << bits) - 1).any()):
                raise ModelError(
                    f"{subject} has zero points of nought, which GPTQ's first version does not store; use a checkpoint "
                    "of the model in the format gptq_v2"
                )
            zeros = zeros + 1
        return Scales(parts["scales"].float().t(), zeros.t(), parts.get("g_idx"))

    def codes(self, matrix: QuantizedMatrix, parts: Mapping[str, torch.Tensor], rows: slice) -> torch.Tensor:
        """See ``QuantizedFormat``."""
        return unpacked(parts["qweight"][:, rows].t(), BITS[matrix.code])
