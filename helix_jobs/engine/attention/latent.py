"""LatentHeads: multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1) without keys of heads.

A head's key is a matrix times the token's latent, beside a rotated key that all heads share, and its value is another
matrix times the latent. A score is ``q . (K c) = (K^T q) . c``: the matrix of keys is applied to the query instead of
to every token, and the matrix of values to the weighted sum of latents. All heads then read one key, the latent and the
shared key side by side, whose first columns are the value, and nothing else is in the cache.

Trade-off: a query and a latent are wider than a head, so a long prompt takes more multiplications than with keys made
for each head. In return no step makes keys of tokens that are in the cache, and prompts and single tokens are computed
alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from helix_jobs.engine.attention.backend import HeadNorm


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LatentHeads:
    """The two matrices of each head, and the norm of latents.

    Attributes:
        norm: Normalises latents.
        keys: ``[num_heads, plain_dim, rank]`` from a latent to the part of a head's key that is not rotated.
        values: ``[num_heads, rank, value_dim]`` from a latent to a head's value, transposed.
        rotary_dim: Width of the shared key.
    """

    norm: HeadNorm
    keys: torch.Tensor
    values: torch.Tensor
    rotary_dim: int

    @property
    def width(self) -> int:
        """Elements of a token's result."""
        return self.values.shape[0] * self.values.shape[2]

    def absorbed(
        self, inner: torch.Tensor, rotate: Callable[[torch.Tensor], torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries ``[T, num_heads, rank + rotary_dim]`` and the key that they share, ``[T, 1, rank + rotary_dim]``.

        Args:
            inner: ``[T, num_heads * (plain_dim + rotary_dim) + rank + rotary_dim]``: queries, latents, shared keys.
            rotate: Rotates ``[T, heads, rotary_dim]``.
        """
        num_heads, plain_dim, rank = self.keys.shape
        head_width = plain_dim + self.rotary_dim
        heads, latents, shared = inner.split((num_heads * head_width, rank, self.rotary_dim), dim=1)
        plain, turning = heads.view(len(inner), num_heads, head_width).split((plain_dim, self.rotary_dim), dim=2)
        # [T, num_heads + 1, rotary_dim]
        turned = rotate(torch.cat((turning, shared.unsqueeze(1)), dim=1))
        turned_queries, turned_keys = turned.split((num_heads, 1), dim=1)
        # [num_heads, T, rank]
        read = torch.bmm(plain.transpose(0, 1).contiguous(), self.keys)
        queries = torch.cat((read.transpose(0, 1), turned_queries), dim=2)
        return queries, torch.cat((self.norm(latents).unsqueeze(1), turned_keys), dim=2)

    def results(self, summed: torch.Tensor) -> torch.Tensor:
        """Values of weighted sums of latents: ``[T, num_heads * value_dim]`` of ``[T, num_heads * rank]``."""
        num_heads, rank, _ = self.values.shape
        by_head = summed.view(len(summed), num_heads, rank).transpose(0, 1).contiguous()
        return torch.bmm(by_head, self.values).transpose(0, 1).reshape(len(summed), self.width)
