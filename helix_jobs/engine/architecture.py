"""Which architectures the engine serves exactly, decided from the configuration alone.

An allow-list: a model that computes attention in any other way (sliding windows, soft caps, sinks, latent or linear
attention) would still produce fluent text here, only not its own.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from helix_jobs.errors import ModelError, ModelNotFoundError, UnsupportedArchitectureError

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PretrainedConfig

SUPPORTED_MODEL_TYPES: Final = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma": "GemmaForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "gpt_neox": "GPTNeoXForCausalLM",
}
_SUPPORTED: Final = f"supported are {', '.join(SUPPORTED_MODEL_TYPES)} with full attention"
# It recomputes its frequencies from the longest position of a batch, so a token would depend on its neighbours.
_BATCH_DEPENDENT_ROPE: Final = frozenset({"dynamic"})
# The same, but only once a position leaves the original context; within it the frequencies are constant.
_LONG_ROPE: Final = "longrope"


def check_model_type(name: str, folder: Path) -> None:
    """Refuse a model directory by its ``config.json``, before transformers interprets it.

    Raises:
        ModelNotFoundError: There is no ``config.json``.
        ModelError: It is damaged.
        UnsupportedArchitectureError: The model type is not on the list.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelNotFoundError(f"model {name} has no config.json; give a transformers model") from error
    except ValueError as error:
        raise ModelError(f"model {name}: {path} is not JSON; fetch the model again") from error
    if not isinstance(config, dict) or config.get("model_type") not in SUPPORTED_MODEL_TYPES:
        kind = config.get("model_type") if isinstance(config, dict) else None
        raise UnsupportedArchitectureError(f"model {name} has the architecture {kind!r}; {_SUPPORTED}")


def check_architecture(name: str, config: PretrainedConfig) -> None:
    """Refuse a configuration the engine would not compute exactly.

    Raises:
        UnsupportedArchitectureError: The message says which property and what is supported.
    """
    if config.model_type not in SUPPORTED_MODEL_TYPES:
        raise UnsupportedArchitectureError(f"model {name} has the architecture {config.model_type!r}; {_SUPPORTED}")
    expected = SUPPORTED_MODEL_TYPES[config.model_type]
    if config.architectures and expected not in config.architectures:
        raise UnsupportedArchitectureError(
            f"model {name} is a {config.architectures[0]}, which does not generate text; it must be a {expected}"
        )
    quantization = getattr(config, "quantization_config", None)
    if quantization is not None:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else type(quantization).__name__
        raise UnsupportedArchitectureError(
            f"model {name} is quantised with {method}; use the original weights or a .gguf file"
        )
    rope = rope_type(config)
    if rope in _BATCH_DEPENDENT_ROPE:
        raise UnsupportedArchitectureError(
            f"model {name} scales its positions with {rope!r}, which depends on the other sequences of a batch; "
            "supported are default, linear, llama3, yarn and longrope"
        )


def context_length(config: PretrainedConfig) -> int:
    """Positions within which the model's attention is plain, prompt and output together.

    A sliding window hides nothing from sequences that fit into it, and long-context rotary scaling does not set in
    before the original context ends: such a model is served up to there.
    """
    limits = [int(config.max_position_embeddings)]
    window = sliding_window(config)
    if window is not None:
        limits.append(window)
    if rope_type(config) == _LONG_ROPE:
        parameters = getattr(config, "rope_parameters", None) or {}
        original = parameters.get("original_max_position_embeddings")
        limits.append(int(original or getattr(config, "original_max_position_embeddings", limits[0])))
    return min(limits)


def sliding_window(config: PretrainedConfig) -> int | None:
    """The window some layer really uses, or None. Qwen carries one that ``use_sliding_window`` turns off."""
    window = getattr(config, "sliding_window", None)
    if window is None or not getattr(config, "use_sliding_window", True):
        return None
    layer_types = getattr(config, "layer_types", None)
    if layer_types is not None and "sliding_attention" not in layer_types:
        return None
    return int(window)


def rope_type(config: PretrainedConfig) -> str:
    """The rotary scaling's name; transformers 5 keeps it in ``rope_parameters``, 4 in ``rope_scaling``."""
    parameters = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    return str(parameters.get("rope_type", parameters.get("type", "default")))


def kv_bytes_per_token(config: PretrainedConfig, itemsize: int) -> int:
    """Bytes of keys and values one token takes in all layers."""
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return int(2 * config.num_hidden_layers * kv_heads * head_dim * itemsize)
