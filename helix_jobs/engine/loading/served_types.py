"""The model types that are served, and those that are not, for a person who chooses a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from helix_jobs.engine.loading.gguf_registry import gguf_model_types
from helix_jobs.engine.model.architecture import SUPPORTED_MODEL_TYPES
from helix_jobs.engine.model.not_served import NOT_SERVED
from helix_jobs.engine.model.text_tower import TEXT_TOWERS

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class ServedType:
    """A model type that is served.

    Attributes:
        model_type: Its name in config.json.
        class_name: Its name in config.json's ``architectures``.
        from_gguf: Whether it is served from a ``.gguf`` file, too; such a file holds the language model alone.
    """

    model_type: str
    class_name: str
    from_gguf: bool


def served_types() -> list[ServedType]:
    """Every model type that is served; the last are checkpoints that also read images, served for text."""
    from_gguf = gguf_model_types()
    served = [ServedType(kind, name, kind in from_gguf) for kind, name in SUPPORTED_MODEL_TYPES.items()]
    return served + [
        ServedType(kind, tower.class_name, not from_gguf.isdisjoint(tower.families.values()))
        for kind, tower in TEXT_TOWERS.items()
    ]


def types_not_served() -> Mapping[str, str]:
    """Model types that people ask for and that are refused, each with the reason that the refusal gives."""
    return NOT_SERVED
