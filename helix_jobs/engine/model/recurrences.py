"""From the description of a recurrent layer and its stored weights to its ``Recurrence`` and the products around it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from helix_jobs.engine.model.activations import ACTIVATIONS
from helix_jobs.engine.model.recurrence_description import (
    DeltaRuleDescription,
    MambaDescription,
    SelectiveScanDescription,
    ShortConvDescription,
)
from helix_jobs.engine.model.row_order import delta_order
from helix_jobs.engine.recurrence.delta_rule import DeltaHeads, DeltaRule
from helix_jobs.engine.recurrence.mamba2 import Mamba2, MambaHeads
from helix_jobs.engine.recurrence.selective_scan import Selection, SelectiveScan
from helix_jobs.engine.recurrence.short_conv import ShortConv

if TYPE_CHECKING:
    import torch

    from helix_jobs.engine.model.recurrence_description import RecurrenceDescription
    from helix_jobs.engine.model.stored_parts import StoredParts
    from helix_jobs.engine.recurrence.recurrence import Recurrence
    from helix_jobs.engine.weights.linear import Linear


def recurrent_products(parts: StoredParts, description: RecurrenceDescription) -> tuple[Linear, Linear]:
    """The matrix products before and behind a recurrence."""
    order = None
    if isinstance(description, DeltaRuleDescription) and description.is_grouped:
        order = delta_order(
            description.num_key_heads, description.num_value_heads, description.key_dim, description.value_dim
        )
    return parts.linear(description.inner, order), parts.linear(description.out)


def build_recurrence(parts: StoredParts, description: RecurrenceDescription) -> Recurrence:
    """What stands between the two products of a recurrent layer."""
    if isinstance(description, ShortConvDescription):
        return ShortConv(*_convolution(parts, description.conv))
    if isinstance(description, MambaDescription):
        return _mamba(parts, description)
    if isinstance(description, SelectiveScanDescription):
        return _selective_scan(parts, description)
    return _delta_rule(parts, description)


def _delta_rule(parts: StoredParts, description: DeltaRuleDescription) -> DeltaRule:
    module = description.module
    taps, _ = _convolution(parts, f"{module}.conv1d")
    return DeltaRule(
        DeltaHeads(
            num_key_heads=description.num_key_heads,
            num_value_heads=description.num_value_heads,
            key_dim=description.key_dim,
            value_dim=description.value_dim,
        ),
        taps=taps,
        activation=ACTIVATIONS[description.activation],
        decay=_tensor(parts, module, "A_log"),
        decay_bias=_tensor(parts, module, "dt_bias"),
        norm=_tensor(parts, f"{module}.{description.norm}", "weight"),
        eps=description.eps,
        rate_scale=description.rate_scale,
    )


def _mamba(parts: StoredParts, description: MambaDescription) -> Mamba2:
    module = description.module
    taps, bias = _convolution(parts, f"{module}.conv1d")
    return Mamba2(
        MambaHeads(
            num_heads=description.num_heads,
            head_dim=description.head_dim,
            num_groups=description.num_groups,
            state_dim=description.state_dim,
        ),
        taps=taps,
        taps_bias=bias,
        activation=ACTIVATIONS[description.activation],
        decay=_tensor(parts, module, "A_log"),
        step_bias=_tensor(parts, module, "dt_bias"),
        skip=_tensor(parts, module, "D"),
        norm=_tensor(parts, f"{module}.norm", "weight") if description.has_norm else None,
        eps=description.eps,
        is_gated_last=description.is_gated_last,
    )


def _selective_scan(parts: StoredParts, description: SelectiveScanDescription) -> SelectiveScan:
    taps, bias = _convolution(parts, f"{description.module}.conv1d")
    steps_norm, keys_norm, queries_norm = (_tensor(parts, norm, "weight") for norm in description.norms)
    return SelectiveScan(
        taps=taps,
        taps_bias=bias,
        activation=ACTIVATIONS[description.activation],
        selection=Selection(
            matrix=_tensor(parts, description.selection, "weight"),
            steps=_tensor(parts, description.steps, "weight"),
            step_bias=_tensor(parts, description.steps, "bias"),
            norms=(steps_norm, keys_norm, queries_norm),
            eps=description.eps,
        ),
        decay=_tensor(parts, description.module, "A_log"),
        skip=_tensor(parts, description.module, "D"),
    )


def _convolution(parts: StoredParts, name: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    """A depthwise convolution's weight ``[taps, channels]`` and bias ``[channels]``, both float32."""
    weight, bias = _tensor(parts, name, "weight"), parts.placed(f"{name}.bias")
    return weight.squeeze(1).t().float().contiguous(), None if bias is None else bias.float()


def _tensor(parts: StoredParts, module: str, name: str) -> torch.Tensor:
    stored = parts.placed(f"{module}.{name}")
    assert stored is not None, "the module always has it"
    return stored
