"""PeftConfig: the ``adapter_config.json`` of a LoRA adapter, as PEFT reads it.

An allow-list, as for models: an adapter with a setting that nobody here computes would still write fluent text, only
not its own.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from helix_jobs.errors import ModelError, ModelNotFoundError, UnsupportedArchitectureError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

Number = TypeVar("Number", int, float)

CONFIG_FILE: Final = "adapter_config.json"
_LARGEST_CONFIG: Final = 5_000_000
# No adapter has as high a rank.
_LARGEST_RANK: Final = 1 << 16
ALL_LINEAR: Final = "all-linear"
# ``target_parameters`` names packed experts, often where nothing of them is changed: the tensors say whether they are.
# The others describe the training, the form of the model's own weights, or what PEFT does beside the computation.
_WITHOUT_MEANING: Final = frozenset(
    {
        *("auto_mapping", "base_model_name_or_path", "revision", "peft_type", "peft_version", "task_type"),
        *("inference_mode", "lora_dropout", "fan_in_fan_out", "megatron_config", "megatron_core", "runtime_config"),
        *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "qalora_group_size", "ensure_weight_tying"),
        "target_parameters",
    }
)
_READ: Final = frozenset(
    {
        *("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "bias"),
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "init_lora_weights"),
    }
)
# What these settings ask for, where they ask for anything.
_REFUSED: Final[Mapping[str, str]] = {
    "use_dora": "is a DoRA adapter, whose change depends on the model's own weights",
    "use_qalora": "is a QALoRA adapter, which pools its inputs",
    "use_bdlora": "has matrices in diagonal blocks",
    "lora_bias": "has biases of its own (lora_bias)",
    "modules_to_save": "replaces whole modules of the model (modules_to_save)",
    "trainable_token_indices": "changes the embeddings of tokens (trainable_token_indices)",
    "alora_invocation_tokens": "begins to work in the middle of a prompt (alora_invocation_tokens)",
    "layer_replication": "repeats layers of the model (layer_replication)",
    "arrow_config": "chooses among further adapters (arrow_config)",
}
# Ways to begin a training that leave the model's own weights as they are.
_PLAIN_BEGINNINGS: Final = (True, False, None, "gaussian", "eva", "orthogonal")
REMEDY: Final = "merge it into the model with merge_and_unload of peft and serve that as the target"


@dataclass(frozen=True, slots=True, kw_only=True)
class PeftConfig:
    """What of an adapter's settings matters.

    Attributes:
        name: The adapter's name.
        rank: Numbers between the two matrices of a module, where ``rank_pattern`` does not say otherwise.
        alpha: The scale is this over the rank, where ``alpha_pattern`` does not say otherwise.
        is_rank_stabilised: The scale is ``alpha`` over the root of the rank (rsLoRA).
        rank_pattern: Regular expression of a module's name -> its rank.
        alpha_pattern: The same of ``alpha``.
        targets: The changed modules: ends of their names, or a regular expression of whole names.
        excluded: The modules among them that are not changed, in the same forms.
        layers: Numbers of the layers that are changed; empty for all.
        layer_lists: Names of the modules that are lists of layers; empty for any.
    """

    name: str
    rank: int
    alpha: float
    is_rank_stabilised: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    targets: str | tuple[str, ...]
    excluded: str | tuple[str, ...]
    layers: tuple[int, ...]
    layer_lists: tuple[str, ...]

    def rank_of(self, module: str) -> int:
        """The rank of a module's change."""
        return _of_pattern(self.rank_pattern, module, self.rank)

    def scale_of(self, module: str) -> float:
        """The factor of a module's change."""
        rank, alpha = self.rank_of(module), _of_pattern(self.alpha_pattern, module, self.alpha)
        return alpha / (math.sqrt(rank) if self.is_rank_stabilised else rank)

    def changes(self, module: str) -> bool:
        """Whether PEFT changes a linear module of this name."""
        if _names(self.excluded, module):
            return False
        if self.targets == ALL_LINEAR:
            return True
        if not _names(self.targets, module):
            return False
        # PEFT looks at layers only where a module is named by the end of its name.
        if isinstance(self.targets, str) or module in self.targets or not self.layers:
            return True
        return _layer_of(module, self.layer_lists) in self.layers


def read_peft_config(name: str, folder: Path) -> PeftConfig:
    """Read an adapter's settings.

    Args:
        name: The adapter's name.
        folder: Its directory, as PEFT's ``save_pretrained`` writes it.

    Raises:
        ModelNotFoundError: There is no such file.
        ModelError: It is damaged.
        UnsupportedArchitectureError: It asks for something that Helix does not compute; the message says what.
    """
    settings = _read_json(name, folder)
    try:
        _check_kind(name, settings)
        return PeftConfig(
            name=name,
            rank=_rank(settings["r"]),
            alpha=_number(settings["lora_alpha"]),
            is_rank_stabilised=bool(settings.get("use_rslora")),
            rank_pattern={_expression(key): _rank(one) for key, one in (settings.get("rank_pattern") or {}).items()},
            alpha_pattern={
                _expression(key): _number(one) for key, one in (settings.get("alpha_pattern") or {}).items()
            },
            targets=_modules(settings["target_modules"]),
            excluded=_modules(settings.get("exclude_modules") or ()),
            layers=tuple(map(int, _listed(settings.get("layers_to_transform")))),
            layer_lists=tuple(map(_expression, _listed(settings.get("layers_pattern")))),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, re.error) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else f"holds what no adapter has ({error})"
        raise ModelError(f"adapter {name}: {CONFIG_FILE} {what:.200}; fetch the adapter again") from error


def _read_json(name: str, folder: Path) -> Mapping[str, Any]:
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise ModelNotFoundError(
            f"adapter {name}: {folder} has no {CONFIG_FILE}; give the directory that save_pretrained of peft made"
        )
    with path.open("rb") as stream:
        content = stream.read(_LARGEST_CONFIG + 1)
    try:
        settings = json.loads(content) if len(content) <= _LARGEST_CONFIG else None
    except (ValueError, RecursionError):
        settings = None
    if not isinstance(settings, dict):
        raise ModelError(f"adapter {name}: {CONFIG_FILE} is no JSON object; fetch the adapter again")
    return settings


def _check_kind(name: str, settings: Mapping[str, Any]) -> None:
    """Refuse what is not computed here."""
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise UnsupportedArchitectureError(f"adapter {name} is of the type {kind!r:.40}; supported is LORA")
    for key, value in settings.items():
        if key in _WITHOUT_MEANING or key in _READ or not value:
            continue
        reason = _REFUSED.get(key, f"has the setting {key:.60}, which Helix does not know")
        raise UnsupportedArchitectureError(f"adapter {name} {reason}; {REMEDY}")
    if settings.get("bias", "none") != "none":
        raise UnsupportedArchitectureError(f"adapter {name} changes biases of the model; {REMEDY}")
    beginning = settings.get("init_lora_weights", True)
    if beginning not in _PLAIN_BEGINNINGS:
        raise UnsupportedArchitectureError(
            f"adapter {name} was trained beside changed weights of the model (init_lora_weights {beginning!r:.40}); "
            "convert it with path_initial_model_for_weight_conversion of peft, or merge it into the model"
        )


def _names(modules: str | tuple[str, ...], module: str) -> bool:
    if isinstance(modules, str):
        return re.fullmatch(modules, module) is not None
    return module in modules or any(module.endswith(f".{one}") for one in modules)


def _layer_of(module: str, lists: Iterable[str]) -> int | None:
    """The number of the layer that a module is in, as PEFT reads it."""
    expressions = [rf"(?:^|.*?\.){one}\.(?P<index>\d+)\." for one in lists] or [r".*?\.[^.]*\.(?P<index>\d+)\."]
    found = next((match for one in expressions if (match := re.match(one, module))), None)
    return None if found is None else int(found["index"])


def _of_pattern(pattern: Mapping[str, Number], module: str, usual: Number) -> Number:
    """The value of the first expression that the end of a module's name matches."""
    return next((value for one, value in pattern.items() if re.match(rf"(.*\.)?({one})$", module)), usual)


def _modules(value: object) -> str | tuple[str, ...]:
    if not isinstance(value, str):
        return tuple(map(str, _listed(value)))
    return ALL_LINEAR if value.lower() == ALL_LINEAR else _expression(value)


def _listed(value: Any) -> list[Any]:  # noqa: ANN401  (JSON of a stranger)
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _expression(text: object) -> str:
    re.compile(str(text))
    return str(text)


def _rank(value: object) -> int:
    if type(value) is not int or not 0 < value < _LARGEST_RANK:
        raise ValueError(f"a rank of {value!r:.40}")
    return value


def _number(value: object) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):  # type: ignore[arg-type]
        raise ValueError(f"an alpha of {value!r:.40}")
    return float(value)  # type: ignore[arg-type]
