"""Checkpoints of NVIDIA's ModelOpt in FP8: E4M3 numbers with one factor for a whole matrix (``weight_scale``)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from helix_jobs.engine.loading.block_fp8_format import BlockFp8
from helix_jobs.engine.loading.quantized_format import refusal

if TYPE_CHECKING:
    from collections.abc import Mapping

NAME: Final = "modelopt"
_ALGORITHM: Final = "FP8"


class ModelOptFp8(BlockFp8):
    """The format of one checkpoint (satisfies ``QuantizedFormat``).

    Factors of a quantised KV cache (``k_scale``, ``v_scale``) are passed over: the cache is not quantised here.

    Args:
        name: The model's name as the user gave it.
        settings: What config.json says of the quantisation.

    Raises:
        UnsupportedArchitectureError: It announces something that is not computed.
    """

    name = NAME
    passed_over = (*BlockFp8.passed_over, "k_scale", "v_scale")

    def __init__(self, name: str, settings: Mapping[str, Any]) -> None:
        if (algorithm := settings.get("quant_algo")) != _ALGORITHM:
            raise refusal(name, NAME, f"quant_algo {algorithm!r:.40} in config.json")
        super().__init__(name, {"weight_block_size": None})
