"""Which architectures the engine serves exactly, decided from the configuration alone.

An allow-list: a model of another architecture, one that attends in chunks, say, would still produce fluent text here,
only not its own.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import transformers

from helix_jobs.engine.model.activations import ACTIVATIONS, XIELU
from helix_jobs.engine.model.description import UnsupportedSettingError
from helix_jobs.engine.model.description_files import read_config
from helix_jobs.engine.model.families.registry import FAMILIES, describe
from helix_jobs.engine.model.families.settings import stated
from helix_jobs.engine.model.not_served import NOT_SERVED
from helix_jobs.engine.model.rope_settings import ORIGINAL_CONTEXT, named, original_contexts, rope_settings
from helix_jobs.engine.model.text_tower import TEXT_TOWERS
from helix_jobs.errors import ModelError, UnsupportedArchitectureError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from transformers import PretrainedConfig

SUPPORTED_MODEL_TYPES: Final = {family.model_type: family.class_name for family in FAMILIES.values()}
_SUPPORTED: Final = f"supported are {', '.join((*SUPPORTED_MODEL_TYPES, *TEXT_TOWERS))}"
# With these types a token's rotation depends on its position alone, with ``longrope`` also on whether its sequence has
# outgrown the original context. ``dynamic`` recomputes its frequencies once a
# position leaves the context that the configuration states (``max_position_embeddings``), and no position does here:
# within it they are the plain ones.
_ROPE_TYPES: Final = ("default", "linear", "llama3", "yarn", "longrope", "proportional", "dynamic")
# Settings that scale positions: a number or a list of numbers, each greater than zero. No scaling has them all.
_ROPE_NUMBERS: Final = (
    *("factor", "low_freq_factor", "high_freq_factor", "attention_factor", "beta_fast", "beta_slow"),
    *("partial_rotary_factor", "short_factor", "long_factor", "alpha"),
)
_PARTIAL_ROTATION: Final = ("partial_rotary_factor", "rotary_pct")
# Model types whose feed-forwards hold the weights of their activation.
_WITH_XIELU: Final = frozenset({"apertus"})
_QUANTIZATION: Final = "quantization_config"
# No count of any model is as large.
_LARGEST_COUNT: Final = 2**31


def check_model_type(name: str, folder: Path) -> dict[str, Any]:
    """Refuse a model directory by its ``config.json``, before transformers interprets it; return its content.

    Raises:
        ModelNotFoundError: There is no ``config.json``.
        ModelError: It is damaged, or another of the files beside it is larger than any such file.
        UnsupportedArchitectureError: The model type is not on the list.
    """
    config = read_config(name, folder)
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in {*SUPPORTED_MODEL_TYPES, *TEXT_TOWERS}:
        raise UnsupportedArchitectureError(_refusal(name, model_type))
    if config.get("transformers_weights") is not None:
        raise UnsupportedArchitectureError(
            f"model {name}: its config.json names a weight file of its own (transformers_weights); weights are read "
            "from model.safetensors or the files of its index: rename the file and remove that line"
        )
    return config


def check_architecture(name: str, config: PretrainedConfig) -> None:
    """Refuse a configuration the engine would not compute exactly.

    Raises:
        UnsupportedArchitectureError: The message says which property and what is supported.
    """
    if config.model_type not in SUPPORTED_MODEL_TYPES:
        raise UnsupportedArchitectureError(_refusal(name, config.model_type))
    family = FAMILIES[config.model_type]
    expected = family.class_name
    if config.architectures and not {expected, *family.other_names} & {*config.architectures}:
        raise UnsupportedArchitectureError(
            f"model {name} is a {config.architectures[0]}, which does not generate text; choose a {expected}"
        )
    quantization = getattr(config, "quantization_config", None)
    if quantization is not None and not stores_mxfp4({"model_type": config.model_type, _QUANTIZATION: quantization}):
        method = quantization.get("quant_method") if isinstance(quantization, dict) else type(quantization).__name__
        raise UnsupportedArchitectureError(
            f"model {name} is quantised with {method}; use the original weights or a .gguf file"
        )
    if family.needs_transformers_5 and transformers.__version__.startswith("4."):
        raise UnsupportedArchitectureError(
            f"model {name}: the architecture {config.model_type!r} is served with transformers 5 alone; install it"
        )
    for rope in map(named, rope_settings(config)):
        _check_rope(name, rope)
    if len(original_contexts(config)) > 1:
        raise _unsupported(name, "has several original contexts; supported is one for all layers")
    # Gemma 4 says ``vision`` where only the parts of an image see each other.
    is_causal = getattr(config, "is_causal", True) and (
        getattr(config, "use_bidirectional_attention", None) in (None, False, "vision")
    )
    if not is_causal:
        raise _unsupported(name, "attends in both directions; supported is causal attention")
    if getattr(config, "add_cross_attention", False) or config.is_encoder_decoder:
        raise _unsupported(name, "attends to an encoder; supported are decoders alone")
    if getattr(config, "pruned_heads", None):
        raise _unsupported(name, "has pruned heads; supported are models with all of them")
    _check_numbers(name, config)
    _check_description(name, config)


def stores_mxfp4(settings: Mapping[str, Any]) -> bool:
    """Whether these settings of a config.json say that experts are in MXFP4 blocks, and its family may have them so."""
    quantization, family = settings.get(_QUANTIZATION), FAMILIES.get(settings.get("model_type", ""))
    method = quantization.get("quant_method") if isinstance(quantization, dict) else None
    return method == "mxfp4" and family is not None and family.stores_mxfp4


def without_mxfp4(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """The content of config.json without a quantisation that is read."""
    if not stores_mxfp4(settings):
        return settings
    return {key: value for key, value in settings.items() if key != _QUANTIZATION}


def _check_description(name: str, config: PretrainedConfig) -> None:
    """Refuse what the family's description cannot say, and head settings that its modules ignore."""
    try:
        description = describe(config)
    except UnsupportedSettingError as error:
        raise _unsupported(name, str(error)) from error
    for activation in description.activations:
        if activation not in ACTIVATIONS and not (activation == XIELU and config.model_type in _WITH_XIELU):
            raise _unsupported(name, f"has the activation {activation!r}; supported are {', '.join(ACTIVATIONS)}")
    if any(own.rotary is not None for own in description.attentions):
        _check_rope_numbers(name, config)
    for window in {own.window for own in description.attentions}:
        if window is not None and window < 1:
            raise ModelError(f"model {name}: its configuration says sliding_window {window}; fetch the model again")
    for key, value in (("num_key_value_heads", description.num_kv_heads), ("head_dim", description.head_dim)):
        if stated(config, key) not in (None, value):
            raise UnsupportedArchitectureError(
                f"model {name}: config.json says {key} {stated(config, key)!r:.40}, and a {config.model_type} "
                "model has no such setting; remove that line, or correct model_type"
            )


def _check_numbers(name: str, config: PretrainedConfig) -> None:
    """Refuse numbers that no model can have."""
    counts = ["num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size", "max_position_embeddings"]
    optional = ["num_key_value_heads", "head_dim"]
    counts += [key for key in optional if stated(config, key) is not None]
    for key in counts:
        value = stated(config, key)
        if type(value) is not int or not 0 < value < _LARGEST_COUNT:
            raise ModelError(f"model {name}: its configuration says {key} {value!r:.40}; fetch the model again")
    for key in ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon"):
        value = getattr(config, key, None)
        if value is not None and not (isinstance(value, int | float) and 0 <= value < math.inf):
            raise ModelError(f"model {name}: its configuration says {key} {value!r:.40}; fetch the model again")


def _check_rope_numbers(name: str, config: PretrainedConfig) -> None:
    """Refuse numbers whose cosines would be NaN, and a context that would hold no token.

    The numbers of a scaling count only where positions are scaled.
    """
    for parameters in rope_settings(config):
        _check_rotation(name, config, parameters)


def _check_rotation(name: str, config: PretrainedConfig, parameters: dict[str, Any]) -> None:
    head_dim = stated(config, "head_dim") or config.hidden_size // config.num_attention_heads
    factors = (parameters.get(key, getattr(config, key, None)) for key in _PARTIAL_ROTATION)
    factor = next((one for one in factors if isinstance(one, int | float) and 0 < one <= 1), 1)
    rotated = int(head_dim * factor)
    if rotated % 2:
        raise ModelError(
            f"model {name}: its configuration says head_dim {head_dim} and rotates {rotated} of it, an odd number; "
            "fetch the model again"
        )
    numbers = {"rope_theta": parameters.get("rope_theta", getattr(config, "rope_theta", None))}
    if named(parameters) != "default":
        numbers |= {key: parameters.get(key) for key in _ROPE_NUMBERS}
        # The original context may stand in either place.
        numbers[ORIGINAL_CONTEXT] = [parameters.get(ORIGINAL_CONTEXT), getattr(config, ORIGINAL_CONTEXT, None)]
    for key, value in numbers.items():
        for number in value if isinstance(value, list) else [value]:
            if number is None:
                continue
            if type(number) not in (int, float) or not 0 < number < math.inf:
                raise ModelError(f"model {name}: its configuration says {key} {number!r:.40}; fetch the model again")


def _unsupported(name: str, what: str) -> UnsupportedArchitectureError:
    """The refusal of a model that has or does something that the engine does not compute."""
    return UnsupportedArchitectureError(f"model {name} {what}; choose another model")


def _refusal(name: str, model_type: object) -> str:
    reason = NOT_SERVED.get(model_type) if isinstance(model_type, str) else None
    return f"model {name} has the architecture {model_type!r}{f' ({reason})' if reason else ''}; {_SUPPORTED}"


def _check_rope(name: str, rope: str) -> None:
    if rope in _ROPE_TYPES:
        return
    raise _unsupported(name, f"scales its positions with {rope!r}; supported are {', '.join(_ROPE_TYPES)}")
