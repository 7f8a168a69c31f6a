"""StepHeads: from a layer's stacked product to the queries, keys and values that attention reads, for one step."""

from __future__ import annotations

from functools import partial
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
        self._rotations = {table: table.at(table.rows(layout), layout.num_positions) for table in spec.rotaries}
        factors = dict.fromkeys(layer.query_factor for layer in spec.layers if layer.query_factor is not None)
        self._factors = {factor: factor.at(layout.positions, layout.num_positions) for factor in factors}

    def of(self, layer: int, qkv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """A layer's queries, keys and values, each ``[T, heads, width]``.

        Keys and values are None where the layer reads those of another; values where they are columns of the keys.

        Args:
            layer: Index of the layer.
            qkv: See ``AttentionStep.attend``.
        """
        own, shape = self._spec.layers[layer], self._spec.geometry.layers[layer]
        if own.latent is not None:
            assert own.rotary is not None, "latents have a rotated key beside them"
            return *own.latent.absorbed(qkv, partial(own.rotary.rotate, rotation=self._rotations[own.rotary])), None
        num_heads, num_new = self._spec.num_heads, shape.num_new_heads
        normed = before_rotation(self._spec, layer, qkv)
        values: torch.Tensor | None = None
        if isinstance(normed, tuple):
            turning, values = torch.cat(normed[:2], dim=1), normed[2]
        elif normed.shape[1] == num_heads + num_new:  # DirectML splits off nothing that has no elements
            turning = normed
        else:
            turning, values = normed.split((num_heads + num_new, num_new), dim=1)
        if own.rotary is not None:
            turning = own.rotary.rotate(turning, self._rotations[own.rotary])
        keys: torch.Tensor | None = None
        queries = turning
        if num_new:
            queries, keys = turning.split((num_heads, num_new), dim=1)
        if own.norm_scope == "rotated" and own.query_norm is not None:
            queries = own.query_norm(queries)
            keys = keys if keys is None or own.key_norm is None else own.key_norm(keys)
        if own.query_factor is not None:
            queries = queries * self._factors[own.query_factor]
        return queries, keys, values if shape.has_values else None


def is_plain(spec: AttentionSpec, layer: int) -> bool:
    """Whether ``before_rotation`` changes nothing of a layer's heads: they are rotated and stored as they come."""
    own, shape = spec.layers[layer], spec.geometry.layers[layer]
    is_changed = own.clip is not None or own.query_norm is not None or own.value_norm is not None
    is_whole = shape.source is None and shape.value_width == shape.head_dim and not own.has_values_of_keys
    return is_whole and not is_changed and own.latent is None


def before_rotation(
    spec: AttentionSpec, layer: int, qkv: torch.Tensor
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Clip and normalise heads as far as that comes before rotation.

    Args:
        spec: The model's attention.
        layer: Index of the layer.
        qkv: See ``AttentionStep.attend``.

    Returns:
        Queries, keys and values, each ``[T, heads, width]``, where they are normalised or not equally wide; else all of
        them side by side, ``[T, heads, head_dim]``. What is not in ``qkv`` has no heads.
    """
    own, shape = spec.layers[layer], spec.geometry.layers[layer]
    norms_rows = own.norm_scope == "row" and own.query_norm is not None
    if own.clip is not None and not norms_rows:
        qkv = qkv.clamp(-own.clip, own.clip)
    if shape.source is not None:
        return _queries_alone(own, qkv.view(len(qkv), spec.num_heads, shape.head_dim))
    counts = spec.head_counts[layer]
    norms_heads = own.query_norm is not None and own.norm_scope != "rotated"
    if shape.value_width == shape.head_dim:
        # [T, heads, head_dim]
        heads = qkv.view(len(qkv), sum(counts), shape.head_dim)
        if not (norms_heads or own.value_norm is not None or own.has_values_of_keys):
            return heads
        queries, keys, *stored = heads.split(counts, dim=1)
    else:
        widths = (shape.head_dim, shape.head_dim, shape.value_width)[: len(counts)]
        parts = qkv.split([count * width for count, width in zip(counts, widths, strict=True)], dim=1)
        queries, keys, *stored = (
            part.view(len(qkv), count, width) for part, count, width in zip(parts, counts, widths, strict=True)
        )
    # Values that are columns of the keys are read in the cache, and not here.
    values = stored[0] if stored else keys
    if own.value_norm is not None and shape.has_values:
        values = own.value_norm(values)
    if own.query_norm is None or own.key_norm is None or not norms_heads:
        return queries, keys, values
    if own.norm_scope == "row":
        rows = own.query_norm(queries.flatten(1)), own.key_norm(keys.flatten(1))
        queries, keys = rows[0].view(queries.shape), rows[1].view(keys.shape)
        if own.clip is not None:
            queries, keys, values = (part.clamp(-own.clip, own.clip) for part in (queries, keys, values))
        return queries, keys, values
    return own.query_norm(queries), own.key_norm(keys), values


def _queries_alone(own: LayerAttention, queries: torch.Tensor) -> torch.Tensor:
    """``before_rotation`` of a layer that reads another's keys: its queries ``[T, num_heads, head_dim]``."""
    if own.query_norm is None or own.norm_scope == "rotated":
        return queries
    if own.norm_scope == "head":
        return own.query_norm(queries)
    queries = own.query_norm(queries.flatten(1)).view(queries.shape)
    return queries if own.clip is None else queries.clamp(-own.clip, own.clip)
