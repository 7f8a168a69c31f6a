"""What stands in the place of attention, or beside it, and carries a state from token to token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from helix_jobs.engine.model.description import ProjectionDescription


@dataclass(frozen=True, slots=True, kw_only=True)
class ShortConvDescription:
    """A gated short convolution in the place of attention (LFM2).

    Attributes:
        inner: Both gates and the values, side by side.
        conv: The convolution's module.
        out: Back to the hidden size.
    """

    inner: ProjectionDescription
    conv: str
    out: ProjectionDescription


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaRuleDescription:
    """The gated delta rule in the place of attention (Qwen3-Next).

    Attributes:
        inner: Queries, keys, values, rates, decays and gates side by side.
        is_grouped: Whether the rows of ``inner`` stand key head by key head (Qwen3-Next): first queries, keys, values
            and gates, then rates and decays.
        module: The module that holds the convolution (``conv1d``), ``A_log``, ``dt_bias`` and the norm.
        out: Back to the hidden size.
        num_key_heads: See ``DeltaHeads``.
        num_value_heads: See ``DeltaHeads``.
        key_dim: See ``DeltaHeads``.
        value_dim: See ``DeltaHeads``.
        activation: Follows the convolution; a key of ``ACTIVATIONS``.
        eps: Added to the norm's mean square.
        norm: The norm's module inside ``module``.
        rate_scale: See ``DeltaRule``.
    """

    inner: ProjectionDescription
    is_grouped: bool
    module: str
    out: ProjectionDescription
    num_key_heads: int
    num_value_heads: int
    key_dim: int
    value_dim: int
    activation: str
    eps: float
    norm: str = "norm"
    rate_scale: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MambaDescription:
    """Mamba-2 in the place of attention (Granite 4), or beside it (Falcon-H1).

    Attributes:
        inner: Gates, values, keys, queries and time steps side by side.
        module: The module that holds the convolution (``conv1d``), ``A_log``, ``dt_bias``, ``D`` and the norm
            (``norm``), if there is one.
        out: Back to the hidden size.
        num_heads: See ``MambaHeads``.
        head_dim: See ``MambaHeads``.
        num_groups: See ``MambaHeads``.
        state_dim: See ``MambaHeads``.
        activation: Follows the convolution; a key of ``ACTIVATIONS``.
        eps: Added to the norm's mean square.
        has_norm: Whether results are normalised; else they are gated alone.
        is_gated_last: Whether the gate is applied behind the norm.
    """

    inner: ProjectionDescription
    module: str
    out: ProjectionDescription
    num_heads: int
    head_dim: int
    num_groups: int
    state_dim: int
    activation: str
    eps: float
    has_norm: bool = True
    is_gated_last: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectiveScanDescription:
    """Mamba in the place of attention (Jamba).

    Attributes:
        inner: Channels and gates side by side.
        module: The module that holds the convolution (``conv1d``), ``A_log`` and ``D``.
        selection: The module of the matrix that makes time steps, keys and queries of channels.
        steps: The module that makes each channel's time step.
        norms: The norms of the narrow vector of time steps, of keys and of queries.
        out: Back to the hidden size.
        activation: Follows the convolution; a key of ``ACTIVATIONS``.
        eps: Added to the norms' mean squares.
    """

    inner: ProjectionDescription
    module: str
    selection: str
    steps: str
    norms: tuple[str, str, str]
    out: ProjectionDescription
    activation: str
    eps: float


RecurrenceDescription = ShortConvDescription | DeltaRuleDescription | MambaDescription | SelectiveScanDescription
