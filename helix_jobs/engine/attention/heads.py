"""StepHeads: from a layer's stacked product to the queries, keys and values that attention reads, for one step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from helix_jobs.engine.attention.backend import AttentionSpec, LayerAttention
    from helix_jobs.engine.attention.step_layout import StepLayout


class StepHeads:
    """The work on heads that is alike in all backends: clip, norms, rotation, factors by position.

    What depends on positions alone is looked up once a step.
    """

    def __init__(self, spec: AttentionSpec, layout: StepLayout) -> None:
        self._spec = spec
        self._rotations = {table: table.at(layout.positions, layout.num_positions) for table in spec.rotaries}
        factors = dict.fromkeys(layer.query_factor for layer in spec.layers if layer.query_factor is not None)
        self._factors = {factor: factor.at(layout.positions, layout.num_positions) for factor in factors}

    def of(self, own: LayerAttention, qkv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries ``[T, num_heads, head_dim]`` and keys and values, each ``[T, num_kv_heads, head_dim]``.

        Args:
            own: The layer's settings.
            qkv: ``[T, (num_heads + 2 * num_kv_heads) * head_dim]``
        """
        spec = self._spec
        num_heads, num_kv_heads = spec.num_heads, spec.geometry.num_kv_heads
        normed = before_rotation(spec, own, qkv)
        if isinstance(normed, tuple):
            turning, values = torch.cat(normed[:2], dim=1), normed[2]
        else:
            turning, values = normed.split((num_heads + num_kv_heads, num_kv_heads), dim=1)
        if own.rotary is not None:
            turning = own.rotary.rotate(turning, self._rotations[own.rotary])
        queries, keys = turning.split((num_heads, num_kv_heads), dim=1)
        if own.norm_scope == "rotated" and own.query_norm is not None and own.key_norm is not None:
            queries, keys = own.query_norm(queries), own.key_norm(keys)
        if own.query_factor is not None:
            queries = queries * self._factors[own.query_factor]
        return queries, keys, values


def before_rotation(
    spec: AttentionSpec, own: LayerAttention, qkv: torch.Tensor
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Clip and normalise heads as far as that comes before rotation.

    Args:
        spec: The model's attention.
        own: The layer's settings.
        qkv: ``[T, (num_heads + 2 * num_kv_heads) * head_dim]``

    Returns:
        Queries, keys and values, each ``[T, heads, head_dim]``, where they are normalised; else all of them side by
        side, ``[T, num_heads + 2 * num_kv_heads, head_dim]``.
    """
    num_heads, num_kv_heads, head_dim = spec.num_heads, spec.geometry.num_kv_heads, spec.geometry.head_dim
    norms_rows = own.norm_scope == "row" and own.query_norm is not None
    if own.clip is not None and not norms_rows:
        qkv = qkv.clamp(-own.clip, own.clip)
    # [T, heads, head_dim]
    heads = qkv.view(len(qkv), num_heads + 2 * num_kv_heads, head_dim)
    if own.query_norm is None or own.key_norm is None or own.norm_scope == "rotated":
        return heads
    queries, keys, values = heads.split((num_heads, num_kv_heads, num_kv_heads), dim=1)
    if own.norm_scope == "row":
        rows = own.query_norm(queries.flatten(1)), own.key_norm(keys.flatten(1))
        queries, keys = rows[0].view(queries.shape), rows[1].view(keys.shape)
        if own.clip is not None:
            queries, keys, values = (part.clamp(-own.clip, own.clip) for part in (queries, keys, values))
        return queries, keys, values
    return own.query_norm(queries), own.key_norm(keys), values
