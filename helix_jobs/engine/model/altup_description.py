"""What AltUp's residual streams are made of (Gemma 3n); see ``altup`` for what is computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from helix_jobs.engine.model.description import NormDescription, ProjectionDescription


@dataclass(frozen=True, slots=True)
class StreamsDescription:
    """The fields are those of ``Streams``; names are relative to the base model."""

    expanding: tuple[ProjectionDescription, ...]
    merging: tuple[ProjectionDescription, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AltUpDescription:
    """The fields are those of ``AltUp`` and of its ``Laurel``; names are relative to the layer.

    Attributes:
        router: The module of the product, as are ``prediction`` and ``correction``.
        scale: The parameter, or None.
    """

    norm: NormDescription
    router: str
    prediction: str
    correction: str
    active: int
    scale: str | None
    laurel_left: ProjectionDescription
    laurel_right: ProjectionDescription
    laurel_norm: NormDescription

    @property
    def plain_matrices(self) -> frozenset[str]:
        """The matrices that keep their form."""
        return frozenset((self.router, self.prediction, self.correction))
