"""Checks of a GGUF file's settings: those that change what is computed are read, and every other one is refused.

A setting that is dropped makes a model that writes fluent text which is not its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from helix_jobs.engine.loading.gguf_family import ROTARY
from helix_jobs.errors import ModelError, UnsupportedArchitectureError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from helix_jobs.engine.loading.gguf_family import GgufFamily

KEY_HEADS: Final = "attention.head_count_kv"
# If one of these is missing, transformers would take the value of some checkpoint of the family.
_NEEDED: Final = ("block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count")
_NEEDED_OF_EXPERTS: Final = ("expert_count", "expert_used_count")
_EXPERT_COUNTS: Final = (
    *_NEEDED_OF_EXPERTS,
    *("expert_feed_forward_length", "expert_shared_feed_forward_length"),
)
_COUNTS: Final = (
    *_NEEDED,
    # If it is missing, every head has its own keys and values.
    *(KEY_HEADS, "attention.key_length", "attention.value_length", "rope.dimension_count"),
    *("attention.sliding_window", "vocab_size"),
    *_EXPERT_COUNTS,
)
_MAY_BE_ZERO: Final = frozenset(
    {
        *("expert_shared_count", "leading_dense_block_count", "expert_group_count", "expert_group_used_count"),
        *("attention.shared_kv_layers", "embedding_length_per_layer_input", "altup.active_idx"),
    }
)
DELTA_SIZES: Final = ("ssm.state_size", "ssm.group_count", "ssm.time_step_rank", "ssm.inner_size")
_READ_COUNTS: Final = (
    _MAY_BE_ZERO
    | {*DELTA_SIZES, "ssm.conv_kernel"}
    | {"interleave_moe_layer_step", "shortconv.l_cache", "full_attention_interval"}
    | {"attention.key_length_swa", "altup.num_inputs"}
    | {"attention.kv_lora_rank", "attention.q_lora_rank", "attention.key_length_mla", "attention.value_length_mla"}
)
# Of layers with a window, where the others have widths of their own.
_LOCAL_WIDTHS: Final = ("attention.value_length_swa", "rope.dimension_count_swa")
_READ_FLAGS: Final = frozenset({"expert_weights_norm", "use_parallel_residual"})
DRAFT_LAYERS: Final = "nextn_predict_layers"
_FLOATS: Final = ("rope.freq_base", "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon")
_LOCAL_BASE: Final = "rope.freq_base_swa"
PATTERN: Final = "attention.sliding_window_pattern"
# For each layer, how far above their mean gates have to lie, in standard deviations; minus infinity for anywhere.
SPARSITY: Final = "activation_sparsity_scale"
_SCALING: Final = "rope.scaling"
_SCALING_FLOATS: Final = tuple(
    f"{_SCALING}.{key}"
    for key in ("attn_factor", "yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow", "yarn_log_multiplier")
)
_ORIGINAL_CONTEXT: Final = f"{_SCALING}.original_context_length"
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
    f"{_SCALING}.yarn_ext_factor": (1.0,),
}
_NEUTRAL_OF_EXPERTS: Final[dict[str, tuple[object, ...]]] = {
    "expert_weights_scale": (0.0, 1.0),
    "expert_group_count": (0, 1),
    "expert_group_used_count": (0, 1),
    "expert_shared_count": (0,),
    "leading_dense_block_count": (0,),
    "interleave_moe_layer_step": (0, 1),
}
_REMARKS: Final = (
    "tensor_data_layout",
    _ORIGINAL_CONTEXT,
    f"{_SCALING}.finetuned",
    "rope.dimension_sections",
    "n_deepstack_layers",
)


def by_layer(value: int | list[int], count: int) -> list[int]:
    """A setting's number for each of the first ``count`` layers, whether the file has a list or one for all."""
    return value[:count] if isinstance(value, list) else [value] * count


def unread(name: str, what: str) -> UnsupportedArchitectureError:
    """The refusal of a file whose model is served from safetensors."""
    return UnsupportedArchitectureError(f"model {name}: {what}; use the model's safetensors")


def check_settings(name: str, architecture: str, family: GgufFamily, settings: Mapping[str, Any]) -> None:
    """Refuse settings that are missing, impossible, or not read.

    Args:
        name: The model's name as the user gave it.
        architecture: The file's name for the family.
        family: Its family.
        settings: Its settings without that prefix.

    Raises:
        ModelError: One is missing or impossible.
        UnsupportedArchitectureError: One would not be read.
    """
    _check_there(name, architecture, family, settings)
    _check_numbers(name, family, settings)
    _check_scaling(name, family, settings)
    if DELTA_SIZES[-1] in family.read_by_made:
        _check_delta_heads(name, settings)
    neutral = {
        **_NEUTRAL,
        **(_NEUTRAL_OF_EXPERTS if family.is_sparse else dict.fromkeys(_EXPERT_COUNTS, (0,))),
        **family.neutral,
    }
    read = _read(family, neutral)
    for key, value in settings.items():
        if key not in read and value not in neutral.get(key, ()):
            raise unread(name, f"the setting {architecture}.{key} ({value!r:.40}) cannot be read from a GGUF file")


def check_heads(name: str, architecture: str, family: GgufFamily, settings: Mapping[str, Any], head_dim: int) -> None:
    """Refuse heads and windows that the family's files do not have.

    Raises:
        UnsupportedArchitectureError: They would not be read.
    """
    if family.is_latent:
        return
    rotated = settings.get(f"rope.dimension_count{family.local}") or head_dim
    if rotated != head_dim and ROTARY not in family.lacks and not (family.rotates_part and rotated < head_dim):
        raise unread(name, "that heads are rotated in part cannot be read from a GGUF file")
    widths = {(settings.get(f"attention.value_length{family.local}") or head_dim, head_dim)}
    if family.local:
        width = settings["attention.key_length"]
        widths |= {(settings.get(key) or width, width) for key in ("attention.value_length", "rope.dimension_count")}
    if any(one != other for one, other in widths):
        raise unread(name, "heads whose values are not as wide as their keys are not supported")
    if family.needs_base and "rope.freq_base" not in settings:
        raise unread(name, f"the base of rotary positions ({architecture}.rope.freq_base) is not in the GGUF file")
    window = settings.get("attention.sliding_window") or None
    if window is not None and window < settings["context_length"] and family.window == "none":
        raise unread(name, f"a sliding window ({window}) cannot be read from a GGUF file of a {architecture} model")


def _check_there(name: str, architecture: str, family: GgufFamily, settings: Mapping[str, Any]) -> None:
    if settings.get("expert_count") and not family.is_sparse:
        raise unread(
            name, f"experts ({architecture}.expert_count) cannot be read from a GGUF file of this architecture"
        )
    may_lack = {"feed_forward_length"} if "expert_feed_forward_length" in family.settings else set()
    for key in (*_NEEDED, family.epsilon[0]):
        if key not in settings and key not in may_lack:
            raise _lacks(name, f"{architecture}.{key}")
    for key in (*(_NEEDED_OF_EXPERTS if family.is_sparse else ()), *_needed_by(family)):
        if settings.get(key) is None or (settings[key] == 0 and key not in _READ_FLAGS | _MAY_BE_ZERO):
            raise _lacks(name, f"{architecture}.{key}")


def _needed_by(family: GgufFamily) -> tuple[str, ...]:
    return (*family.settings, *family.rope_settings, *sorted(family.read_by_made))


def _read(family: GgufFamily, neutral: Mapping[str, object]) -> set[str]:
    """Settings that the configuration is made of, and remarks."""
    read = {*_COUNTS, *_FLOATS, *_REMARKS, f"{_SCALING}.type", f"{_SCALING}.factor", "rope.scale_linear"}
    read -= set(neutral)
    read |= {*_needed_by(family), *family.optional, *family.by_layer}
    if isinstance(family.window, int):
        read.add(PATTERN)
    if family.local:
        read |= {*_LOCAL_WIDTHS}
    if family.has_draft_layers:
        read.add(DRAFT_LAYERS)
    if family.local_theta is not None:
        read.add(_LOCAL_BASE)
    return read | {*_SCALING_FLOATS} if family.scalings else read


def _lacks(name: str, key: str) -> ModelError:
    return ModelError(f"model {name}: the GGUF file lacks {key}; fetch it again")


def _says(name: str, key: str, value: object) -> ModelError:
    return ModelError(f"model {name}: the GGUF file says {key} {value!r:.40}; fetch it again")


def _check_numbers(name: str, family: GgufFamily, settings: Mapping[str, Any]) -> None:
    own = {*_needed_by(family), *family.optional}
    for key in (*_COUNTS, *_LOCAL_WIDTHS, DRAFT_LAYERS, *sorted(own & _READ_COUNTS)):
        if key in family.by_layer | family.by_kind:
            _check_list(name, key, settings, is_uniform=key in family.by_layer)
        else:
            _check_count(name, key, settings.get(key, 1))
    floats = own - {*_COUNTS, PATTERN, SPARSITY} - _READ_COUNTS - _READ_FLAGS
    for key in (*_FLOATS, _LOCAL_BASE, *_SCALING_FLOATS, *sorted(floats)):
        value = settings.get(key, 1.0)
        if not isinstance(value, float) or not 0 <= value < float("inf"):
            raise _says(name, key, value)
    for key in sorted(own & _READ_FLAGS):
        if not isinstance(settings.get(key, False), bool):
            raise _says(name, key, settings[key])
    bounds, num_layers = settings.get(SPARSITY), settings["block_count"]
    if SPARSITY in own and not (
        isinstance(bounds, list)
        and len(bounds) == num_layers
        and all(isinstance(one, float) and one < float("inf") for one in bounds)
    ):
        raise _says(name, SPARSITY, bounds)
    pattern = settings.get(PATTERN, []) if isinstance(family.window, int) else []
    # Layers that only draft may not be listed.
    counts = (0, num_layers, num_layers - (settings.get(DRAFT_LAYERS) or 0))
    is_whole = isinstance(pattern, list) and len(pattern) in counts
    if not is_whole or not all(isinstance(one, bool) for one in pattern):
        raise _says(name, PATTERN, pattern)


def _check_count(name: str, key: str, value: object) -> None:
    if isinstance(value, list):
        raise unread(name, f"the setting {key}, one for each layer, cannot be read from a GGUF file")
    may_be_zero = key not in (*_NEEDED, KEY_HEADS)
    if type(value) is not int or not (0 < value < 2**31 or (may_be_zero and value == 0)):
        raise _says(name, key, value)


def _check_delta_heads(name: str, settings: Mapping[str, Any]) -> None:
    _, num_keys, num_values, width = (settings[key] for key in DELTA_SIZES)
    if num_values % num_keys or width % num_values:
        raise _says(name, ", ".join(DELTA_SIZES), [settings[key] for key in DELTA_SIZES])


def _check_list(name: str, key: str, settings: Mapping[str, Any], *, is_uniform: bool) -> None:
    """Refuse a list that is not one number for each layer: the same one everywhere, or zero, if it ``is_uniform``."""
    value = settings.get(key, 1)
    numbers = value if isinstance(value, list) else [value]
    counted = {number for number in numbers if number != 0}
    if (
        any(type(number) is not int or not 0 <= number < 2**31 for number in numbers)
        or (len(counted) != 1 if is_uniform else 0 in numbers)
        or (isinstance(value, list) and len(numbers) != settings["block_count"])
    ):
        raise _says(name, key, value)


def _check_scaling(name: str, family: GgufFamily, settings: Mapping[str, Any]) -> None:
    kind, factor = settings.get(f"{_SCALING}.type"), settings.get(f"{_SCALING}.factor")
    if kind == "longrope" and kind in family.scalings:  # its factors are tensors
        return
    if kind in family.scalings:
        if not isinstance(factor, float) or not 0 < factor < float("inf"):
            raise _says(name, f"{_SCALING}.factor", factor)
        original = settings.get(_ORIGINAL_CONTEXT)
        if kind == "yarn" and (type(original) is not int or not 0 < original < 2**31):
            raise _says(name, _ORIGINAL_CONTEXT, original)
        return
    linear = settings.get("rope.scale_linear", factor)
    # llama.cpp scales linearly if no type is given; older files have the factor under the older name.
    if kind not in (None, "none", "linear") or (kind != "none" and linear not in (None, 0.0, 1.0)):
        raise unread(
            name, f"the scaling of positions ({kind or f'linear, {linear!r:.40}'}) cannot be read from a GGUF file"
        )
