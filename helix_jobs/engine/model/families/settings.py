"""Settings that many families' configurations share, read in one way."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal

from helix_jobs.engine.model.description import (
    FeedForwardDescription,
    NormDescription,
    ProjectionDescription,
    UnsupportedSettingError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import ModelDescription

    NormByName = Callable[[str], NormDescription]

FULL: Final = "full_attention"
SLIDING: Final = "sliding_attention"


def stated(config: PretrainedConfig, key: str) -> Any:  # noqa: ANN401  (whatever config.json holds)
    """A setting for all layers, or None. transformers 5 yields no attribute that some layers have their own word on."""
    own = vars(config)
    return own[key] if key in own else getattr(config, key, None)


def check_setting(config: PretrainedConfig, key: str, *served: object, is_read: bool = False) -> None:
    """Refuse another value of a setting that checkpoints have and transformers does not read, or reads in part.

    Args:
        config: The configuration.
        key: Its setting. One that is not there is not refused.
        served: The values that are served.
        is_read: Whether transformers reads the setting, so that null is one more value; else null says nothing.

    Raises:
        UnsupportedSettingError: Its value is none of these.
    """
    value = getattr(config, key, None)
    says_nothing = value is None and not (is_read and hasattr(config, key))
    if not says_nothing and value not in served:
        raise UnsupportedSettingError(f"has {key} {value!r:.40}; supported is {' or '.join(map(repr, served))}")


def head_dim(config: PretrainedConfig) -> int:
    """Width of a head: as stated, or an equal part of the hidden size."""
    return int(stated(config, "head_dim") or config.hidden_size // config.num_attention_heads)


def num_kv_heads(config: PretrainedConfig) -> int:
    """Key-value heads: as stated, or one for each query head."""
    return int(stated(config, "num_key_value_heads") or config.num_attention_heads)


def layer_types(config: PretrainedConfig) -> tuple[str, ...]:
    """The kind of each layer's attention, for a family that reads it.

    Raises:
        UnsupportedSettingError: There is another kind than full attention and a sliding window.
    """
    types = tuple(getattr(config, "layer_types", None) or (FULL,) * config.num_hidden_layers)
    unknown = sorted({*types} - {FULL, SLIDING})
    if unknown:
        raise UnsupportedSettingError(f"has layers of type {unknown[0]!r}; supported are {FULL} and {SLIDING}")
    if len(types) != config.num_hidden_layers:
        raise UnsupportedSettingError(f"has layer_types of {len(types)} of its {config.num_hidden_layers} layers")
    return types


def mixed_types(
    config: PretrainedConfig, *others: str, older: Mapping[str, str] = MappingProxyType({})
) -> tuple[str, ...]:
    """The kind of each layer, of a family in which layers of other kinds stand between those with full attention.

    Args:
        config: Its configuration.
        others: The other kinds.
        older: Further names of kinds, such as transformers 4 has, and what they are called here.

    Raises:
        UnsupportedSettingError: There is another kind, a layer without a kind, or no layer with full attention.
    """
    types = tuple(older.get(kind, kind) for kind in config.layer_types)
    unknown = sorted({*types} - {FULL, *others})
    if unknown:
        raise UnsupportedSettingError(
            f"has layers of type {unknown[0]!r}; supported are {FULL} and {' and '.join(others)}"
        )
    if len(types) != config.num_hidden_layers or FULL not in types:
        raise UnsupportedSettingError(
            f"has layer_types of {len(types)} of its {config.num_hidden_layers} layers, {types.count(FULL)} of them "
            f"{FULL}; each layer needs a type, and at least one full attention"
        )
    return types


def with_windows(
    model: ModelDescription, config: PretrainedConfig, types: Sequence[str] | None = None
) -> ModelDescription:
    """The same model with the configuration's window in the layers whose type says so.

    Args:
        model: The model.
        config: Its configuration.
        types: The kind of each layer; None for what ``layer_types`` says.
    """
    types, window = layer_types(config) if types is None else types, _window(config)
    if window is None and SLIDING in types and config.sliding_window is None:
        raise UnsupportedSettingError(f"has layers of type {SLIDING!r} and no sliding_window")
    return model.with_attention(lambda index, own: replace(own, window=window if types[index] == SLIDING else None))


def with_one_window(model: ModelDescription, config: PretrainedConfig) -> ModelDescription:
    """The same model with the configuration's window, if there is one, in every layer."""
    return model.with_attention(lambda _, own: replace(own, window=_window(config)))


def _window(config: PretrainedConfig) -> int | None:
    """The window; None also for one that the whole context fits into, because it hides nothing."""
    window = getattr(config, "sliding_window", None)
    return None if window is None or window >= config.max_position_embeddings else int(window)


def rms_norm(eps: float, offset: float = 0.0) -> NormByName:
    """A norm of this kind by the name of its module."""
    return partial(_norm, kind="rms", eps=float(eps), offset=offset)


def layer_norm(eps: float, offset: float = 0.0) -> NormByName:
    """A norm of this kind by the name of its module."""
    return partial(_norm, kind="layer", eps=float(eps), offset=offset)


def _norm(name: str, **settings: Any) -> NormDescription:  # noqa: ANN401  (the fields of a NormDescription)
    return NormDescription(name=name, **settings)


def without_weight(kind: Literal["rms", "layer"], eps: float) -> NormByName:
    """A norm of this kind that has no weight; the name of its module tells a reader where it stands."""
    return lambda _name: NormDescription(name=None, kind=kind, eps=float(eps))


def plain_feed_forward(
    activation: str, inner: str = "mlp.up_proj", outer: str = "mlp.down_proj"
) -> FeedForwardDescription:
    """A feed-forward without a gate."""
    return FeedForwardDescription(
        inner=projection(inner), outer=projection(outer), activation=str(activation), is_gated=False
    )


def projection(*names: str) -> ProjectionDescription:
    """Modules whose outputs stand side by side."""
    return ProjectionDescription(names)


def transposed(name: str) -> ProjectionDescription:
    """A module that stores ``[in_features, out_features]``, as GPT-2's do."""
    return ProjectionDescription((name,), is_transposed=True)
