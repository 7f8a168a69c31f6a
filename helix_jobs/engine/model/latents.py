"""From the description of latent attention and a layer's stored weights to ``LatentHeads`` and the products before."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from helix_jobs.engine.attention.latent import LatentHeads
from helix_jobs.engine.model.query_lift import QueryLift
from helix_jobs.engine.model.row_order import latent_order

if TYPE_CHECKING:
    from helix_jobs.engine.model.description import ProjectionDescription
    from helix_jobs.engine.model.latent_description import LatentDescription
    from helix_jobs.engine.model.placement import Placement
    from helix_jobs.engine.model.stored_parts import StoredParts
    from helix_jobs.engine.weights.linear import Linear


def latent_products(
    parts: StoredParts, qkv: ProjectionDescription, own: LatentDescription, num_heads: int, *, is_interleaved: bool
) -> tuple[Linear, QueryLift | None]:
    """What a layer's first product yields, and the second product of its queries, if it has one.

    Args:
        parts: The layer.
        qkv: Its first product.
        own: Its attention.
        num_heads: Query heads.
        is_interleaved: Whether rotated pairs are stored side by side; their rows are then reordered.
    """
    # Of queries, and of the latent with the shared key behind it.
    orders = latent_order(num_heads, own.plain_dim, own.rotary_dim), latent_order(1, own.rank, own.rotary_dim)
    if own.queries is None:
        both = torch.cat((orders[0], len(orders[0]) + orders[1]))
        return parts.linear(qkv, both if is_interleaved else None), None
    rank = own.queries.rank
    order = torch.cat((torch.arange(rank), rank + orders[1]))
    lift = QueryLift(
        parts.norm(own.queries.norm, rank),
        parts.linear(own.queries.product, orders[0] if is_interleaved else None),
    )
    return parts.linear(qkv, order if is_interleaved else None), lift


def latent_heads(parts: StoredParts, place: Placement, own: LatentDescription, num_heads: int) -> LatentHeads:
    """The matrices of a layer's heads.

    Raises:
        Float16OverflowError: See ``Placement``.
    """
    # [num_heads, plain_dim + value_dim, rank]
    stored = place.cast(parts.tensor(f"{own.matrix}.weight")).view(num_heads, -1, own.rank)
    keys, values = stored.split((own.plain_dim, own.value_dim), dim=1)
    return LatentHeads(
        norm=parts.norm(own.norm, own.rank),
        # Made anew, because the stored matrix may be a view of the mapped file.
        keys=place.move(keys.clone(memory_format=torch.contiguous_format)),
        values=place.move(values.transpose(1, 2).clone(memory_format=torch.contiguous_format)),
        rotary_dim=own.rotary_dim,
    )
