"""ModelRunner: one decoder with its paged cache; the only caller of a model's forward."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from helix_jobs.engine.attention import AttentionClock
from helix_jobs.engine.decoder.decoder import padded_rows
from helix_jobs.engine.kv_cache import PagedKVCache
from helix_jobs.engine.step_layout import plan_step

if TYPE_CHECKING:
    from collections.abc import Sequence

    from helix_jobs.engine.config import CacheConfig
    from helix_jobs.engine.decoder.decoder import Decoder
    from helix_jobs.engine.step_layout import StepLayout, TokenSlice


class ModelRunner:
    """Packed tokens in, logits of chosen rows out."""

    def __init__(self, decoder: Decoder, cache_config: CacheConfig) -> None:
        decoder.pack()
        self.decoder = decoder
        self._device = decoder.device
        self.vocab_size = decoder.vocab_size
        self.num_embeddings = decoder.num_embeddings
        self.cache = PagedKVCache(decoder.geometry, cache_config, decoder.dtype, decoder.device)
        # Whether an operator has ended when it returns. Elsewhere timing one would need a barrier after it.
        self.is_synchronous = decoder.device.type == "cpu"
        self._clock = AttentionClock() if self.is_synchronous else None

    def plan(self, slices: Sequence[TokenSlice]) -> StepLayout:
        """Pack slices for this model's cache."""
        return plan_step(
            slices,
            self.cache.geometry,
            self.cache.block_size,
            self._device,
            num_heads=self.decoder.num_heads,
            is_native=self.decoder.native is not None,
        )

    def pack_tokens(self, layout: StepLayout, tokens: Sequence[Sequence[int]]) -> torch.Tensor:
        """Tokens of each input slice, packed in the layout's order: ``[T]`` on the device."""
        packed = [token for index in layout.order for token in tokens[index]]
        return torch.tensor(packed, dtype=torch.int64).to(self._device)

    def reorder(self, layout: StepLayout, tokens: torch.Tensor) -> torch.Tensor:
        """One device token per input slice, ``[num_slices]``, in packed order: ``[T]`` with T = num_slices."""
        if layout.order == tuple(range(len(layout.order))):
            return tokens
        return tokens.index_select(0, torch.tensor(layout.order, dtype=torch.int64).to(self._device))

    def take_attention_seconds(self) -> float:
        """Time spent in attention since the last call; 0.0 where it cannot be told."""
        return 0.0 if self._clock is None else self._clock.take()

    def forward(self, layout: StepLayout, tokens: torch.Tensor, logit_rows: Sequence[int]) -> torch.Tensor | None:
        """Run the model over one packed step and write its keys and values.

        Args:
            layout: From ``plan``.
            tokens: ``[T]`` token ids in packed order, on the device.
            logit_rows: Packed positions whose logits are wanted.

        Returns:
            ``[len(logit_rows), vocab_size]`` on the device, or None when no row is wanted.
        """
        # [T, hidden_size], and padding
        hidden = self.decoder.forward(tokens, layout, self.cache, self._clock)
        if not logit_rows:
            return None
        num_rows = len(logit_rows)
        rows = [*logit_rows, *[logit_rows[-1]] * (padded_rows(num_rows) - num_rows)]
        if rows != list(range(hidden.shape[0])):
            hidden = hidden.index_select(0, torch.tensor(rows, dtype=torch.int64).to(self._device))
        return self.decoder.logits(hidden).narrow(0, 0, num_rows)
