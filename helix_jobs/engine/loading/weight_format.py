"""WeightFormat: the number format in which a model's weights are kept, and the formats that a device offers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch

from helix_jobs.engine.devices.devices import resolve_dtype
from helix_jobs.errors import ConfigurationError

INT8: Final = "int8"  # as a dtype, an int8 target; as a draft, an int8 copy of the target
PACKED: Final = "packed"  # as a dtype, a target whose weights stay in blocks


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """A number format of weights.

    Attributes:
        dtype: Dtype of activations, and of weights that are neither int8 nor in blocks.
        is_int8: Whether the matrix products are int8.
        is_packed: Whether weights stay in blocks of whole numbers.
    """

    dtype: torch.dtype
    is_int8: bool = False
    is_packed: bool = False

    @property
    def name(self) -> str:
        """As ``--dtype`` takes it."""
        if self.is_packed:
            return PACKED
        return INT8 if self.is_int8 else str(self.dtype).removeprefix("torch.")


def format_of(
    dtype: str, device: torch.device, stored: torch.dtype | None, *, has_blocks: bool = False
) -> WeightFormat:
    """The format that a setting asks for.

    Args:
        dtype: ``HELIX_DTYPE``: a name for ``resolve_dtype``, ``int8`` or ``packed``.
        device: Where the model computes.
        stored: The dtype of the checkpoint's weights; None if they are quantised, or it is unknown.
        has_blocks: Whether the checkpoint stores weights in blocks that can be multiplied as they are.

    Raises:
        ConfigurationError: The dtype is unknown or not supported on this device.
    """
    if dtype == INT8:
        return WeightFormat(resolve_dtype("auto", device, stored), is_int8=True)
    if dtype in ("auto", PACKED):
        return WeightFormat(resolve_dtype("auto", device, stored), is_packed=has_blocks and _multiplies_blocks(device))
    return WeightFormat(resolve_dtype(dtype, device, stored))


def check_packs(name: str, device: torch.device, *, has_blocks: bool) -> None:
    """Refuse the dtype ``packed`` where a model has no blocks, or where nothing multiplies them.

    Args:
        name: The model's name as the user gave it.
        device: Where it computes.
        has_blocks: As in ``format_of``.

    Raises:
        ConfigurationError: See above.
    """
    if not has_blocks:
        raise ConfigurationError(
            f"dtype packed keeps the blocks of a quantised model, and model {name} has none; use dtype auto"
        )
    if not _multiplies_blocks(device):
        raise ConfigurationError(f"dtype packed runs on a CPU only, not on {device.type}; use dtype auto")


def formats_for(
    device: torch.device, stored: torch.dtype | None, *, has_blocks: bool = False
) -> tuple[WeightFormat, ...]:
    """The formats that serve a model well on a device, the one that ``auto`` chooses first.

    Beside it these are float32, the 16-bit format that the device computes, and on a CPU blocks and int8.
    """
    auto = format_of("auto", device, stored, has_blocks=has_blocks)
    others = [WeightFormat(torch.float32), WeightFormat(resolve_dtype("auto", device, torch.bfloat16))]
    if device.type == "cpu":
        others.append(WeightFormat(auto.dtype, is_int8=True))
    if has_blocks:
        others.append(format_of(PACKED, device, stored, has_blocks=True))
    return tuple(dict.fromkeys([auto, *others]))


def _multiplies_blocks(device: torch.device) -> bool:
    return device.type == "cpu"
