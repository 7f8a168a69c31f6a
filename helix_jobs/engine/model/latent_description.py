"""LatentDescription: attention whose keys and values are made of one narrow vector per token (DeepSeek-V2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from helix_jobs.engine.attention.cache_geometry import CacheShape

if TYPE_CHECKING:
    from helix_jobs.engine.model.description import NormDescription, ProjectionDescription


@dataclass(frozen=True, slots=True, kw_only=True)
class LowRankDescription:
    """Queries made in two products: ``qkv`` yields fewer numbers than they have, and this makes queries of them.

    Attributes:
        rank: Numbers that ``qkv`` yields for all queries of a token.
        norm: Norm between the two products.
        product: The second one.
    """

    rank: int
    norm: NormDescription
    product: ProjectionDescription


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentDescription:
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1).

    ``qkv`` of such a layer yields the queries (or what ``queries`` makes them of), the token's latent, and the rotated
    part of a key that all heads share. A head's query is ``plain_dim`` numbers that are not rotated and ``rotary_dim``
    that are.

    Attributes:
        rank: Numbers of a latent.
        plain_dim: Numbers of a head's key that are made of the latent.
        rotary_dim: Numbers of the shared key.
        value_dim: Numbers of a head's value, all made of the latent.
        norm: Norm of the latent.
        matrix: The module whose weight makes keys and values of the normalised latent, head by head a key and a value.
        queries: The second product of queries, or None where ``qkv`` yields them.
    """

    rank: int
    plain_dim: int
    rotary_dim: int
    value_dim: int
    norm: NormDescription
    matrix: str
    queries: LowRankDescription | None = None

    @property
    def cache(self) -> CacheShape:
        """What a layer keeps of a token: one key for all heads, whose first columns are its value."""
        return CacheShape(num_kv_heads=1, head_dim=self.rank + self.rotary_dim, value_dim=self.rank, has_values=False)
