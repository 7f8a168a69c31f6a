"""From the description of a recurrent layer and its stored weights to its ``Recurrence``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from helix_jobs.engine.recurrence.short_conv import ShortConv

if TYPE_CHECKING:
    import torch

    from helix_jobs.engine.model.description import RecurrenceDescription
    from helix_jobs.engine.model.stored_parts import StoredParts
    from helix_jobs.engine.recurrence.recurrence import Recurrence


def build_recurrence(parts: StoredParts, description: RecurrenceDescription) -> Recurrence:
    """What stands between the two products of a recurrent layer."""
    return ShortConv(*_taps(parts, description.conv))


def _taps(parts: StoredParts, name: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    """A depthwise convolution's weight ``[taps, channels]`` and bias ``[channels]``, both float32."""
    weight, bias = parts.placed(f"{name}.weight"), parts.placed(f"{name}.bias")
    assert weight is not None, "a convolution has a weight"
    return weight.squeeze(1).t().float().contiguous(), None if bias is None else bias.float()
