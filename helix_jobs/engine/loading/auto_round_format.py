"""Checkpoints of AutoRound (github.com/intel/auto-round), which packs as GPTQ or AWQ do.

See Cheng et al., "Optimize Weight Rounding via Signed Gradient Descent for the Quantization of LLMs", EMNLP 2024.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from helix_jobs.engine.loading.awq_format import Awq
from helix_jobs.engine.loading.gptq_format import Gptq
from helix_jobs.engine.loading.quantized_format import refusal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from helix_jobs.engine.loading.quantized_format import QuantizedFormat

NAMES: Final = ("auto-round", "intel/auto-round")
# The version of GPTQ's format that a packing is.
_AS_GPTQ: Final = {
    "auto_round:auto_gptq": "gptq",
    "auto_round:gptqmodel": "gptq_v2",
    "auto_round": "gptq_v2",
}
_AS_AWQ: Final = "auto_round:auto_awq"
_WHOLE_BITS: Final = 16


def auto_round(name: str, settings: Mapping[str, Any]) -> QuantizedFormat:
    """The format in which AutoRound has packed a checkpoint.

    Args:
        name: The model's name as the user gave it.
        settings: What config.json says of the quantisation.

    Raises:
        UnsupportedArchitectureError: It announces something that is not computed.
    """
    method, packing = NAMES[0], settings.get("packing_format")
    if settings.get("data_type", "int") != "int":
        raise refusal(name, method, f"data_type {settings['data_type']!r:.40} in config.json")
    own = settings.get("extra_config") or {}
    if not isinstance(own, dict) or not all(map(_is_left, own.values())):
        raise refusal(name, method, "extra_config in config.json, which gives modules settings of their own")
    if packing == _AS_AWQ:
        return Awq(name, {**settings, "version": "gemm"})
    if packing not in _AS_GPTQ:
        raise refusal(name, method, f"packing_format {packing!r:.40} in config.json")
    return Gptq(name, {**settings, "checkpoint_format": _AS_GPTQ[packing]})


def _is_left(module: Any) -> bool:  # noqa: ANN401  (a stranger's JSON)
    """Whether a module's own settings say that it is not quantised."""
    bits = module.get("bits") if isinstance(module, dict) else None
    return type(bits) is int and bits >= _WHOLE_BITS
