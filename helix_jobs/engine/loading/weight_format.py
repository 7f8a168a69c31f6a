"""WeightFormat: the number format in which a model's weights are kept, and the formats that a device offers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch

from helix_jobs.engine.devices.devices import resolve_dtype

INT8: Final = "int8"  # as a dtype, an int8 target; as a draft, an int8 copy of the target


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """A number format of weights.

    Attributes:
        dtype: Dtype of activations, and of the weights unless ``is_int8``.
        is_int8: Whether the matrix products are int8.
    """

    dtype: torch.dtype
    is_int8: bool = False

    @property
    def name(self) -> str:
        """As ``--dtype`` takes it."""
        return INT8 if self.is_int8 else str(self.dtype).removeprefix("torch.")


def format_of(dtype: str, device: torch.device, stored: torch.dtype | None) -> WeightFormat:
    """The format that a setting asks for.

    Args:
        dtype: ``HELIX_DTYPE``: a name for ``resolve_dtype``, or ``int8``.
        device: Where the model computes.
        stored: The dtype of the checkpoint's weights; None if they are quantised, or it is unknown.

    Raises:
        ConfigurationError: The dtype is unknown or not supported on this device.
    """
    is_int8 = dtype == INT8
    return WeightFormat(resolve_dtype("auto" if is_int8 else dtype, device, stored), is_int8)


def formats_for(device: torch.device, stored: torch.dtype | None) -> tuple[WeightFormat, ...]:
    """The formats that serve a model well on a device, the one that ``auto`` chooses first.

    Beside it these are float32, the 16-bit format that the device computes, and on a CPU int8.
    """
    auto = WeightFormat(resolve_dtype("auto", device, stored))
    others = [WeightFormat(torch.float32), WeightFormat(resolve_dtype("auto", device, torch.bfloat16))]
    if device.type == "cpu":
        others.append(WeightFormat(auto.dtype, is_int8=True))
    return tuple(dict.fromkeys([auto, *others]))
