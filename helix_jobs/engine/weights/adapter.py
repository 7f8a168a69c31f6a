"""Adapter: low-rank changes of a model's matrix products (Hu et al., "LoRA", ICLR 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch


@dataclass(frozen=True, slots=True, eq=False)
class LoraPair:
    """The change of one matrix: ``scale * up @ down`` is added to it.

    Attributes:
        down: ``[rank, in_features]``, PEFT's ``lora_A``.
        up: ``[out_features, rank]``, PEFT's ``lora_B``.
        scale: Factor of the product.
    """

    down: torch.Tensor
    up: torch.Tensor
    scale: float

    @property
    def rank(self) -> int:
        """Numbers between the two products."""
        return self.down.shape[0]


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """One adapter, on the host.

    Attributes:
        name: The name by which requests choose it.
        digest: Of its files. Two adapters that compute the same may have the same.
        pairs: The changed modules by their names, without the prefix that only models with a head have.
    """

    name: str
    digest: str
    pairs: Mapping[str, LoraPair]
