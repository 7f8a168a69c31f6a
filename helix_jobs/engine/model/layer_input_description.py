"""Inputs of each layer beside the residual: what a token is looked up as and what its embedding yields (Gemma 4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from helix_jobs.engine.model.description import NormDescription, ProjectionDescription


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerInputsDescription:
    """How the inputs of all layers are made, see ``LayerInputs``; names are relative to the base model.

    Attributes:
        table: The embedding's module; a row holds the inputs of all layers side by side.
        projection: From the embedded token to the inputs of all layers.
        norm: Norm of what that yields for each layer.
        width: Width of a layer's input.
        has_every_token: Whether the table has a row for every token; one without reads the first row (Gemma 3n).
    """

    table: str
    projection: ProjectionDescription
    norm: NormDescription
    width: int
    has_every_token: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerInputDescription:
    """What a layer does with its input, see ``LayerInput``; names are relative to the layer.

    Attributes:
        gate: From the residual to the width of an input.
        projection: Back to the hidden size.
        norm: Norm of the result.
        activation: A key of ``ACTIVATIONS``; of the gate.
    """

    gate: ProjectionDescription
    projection: ProjectionDescription
    norm: NormDescription
    activation: str
