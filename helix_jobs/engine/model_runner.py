"""ModelRunner: the only caller of a model's forward."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from helix_jobs.engine.attention import ATTENTION_NAME, PagedStep
from helix_jobs.engine.kv_cache import CacheGeometry, PagedKVCache
from helix_jobs.engine.step_layout import plan_step

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel

    from helix_jobs.engine.config import CacheConfig
    from helix_jobs.engine.step_layout import StepLayout, TokenSlice


class ModelRunner:
    """One model with its paged cache: packed tokens in, logits of chosen rows out."""

    def __init__(self, model: PreTrainedModel, cache_config: CacheConfig, device: torch.device) -> None:
        model.set_attn_implementation(ATTENTION_NAME)
        head = model.get_output_embeddings()
        assert head is not None, "the loader admits causal language models only"
        self._decoder = model.base_model
        self._head = head
        self._device = device
        self.vocab_size = int(head.weight.shape[0]) if hasattr(head, "weight") else int(model.config.vocab_size)
        # Rows of the input embedding: the token ids this model can read.
        embeddings = model.get_input_embeddings()
        assert isinstance(embeddings, torch.nn.Embedding), "every admitted architecture reads token ids"
        self.num_embeddings = embeddings.num_embeddings
        self.cache = PagedKVCache(CacheGeometry.of(model), cache_config, model.dtype, device)

    def plan(self, slices: Sequence[TokenSlice]) -> StepLayout:
        """Pack slices for this model's cache."""
        return plan_step(slices, self.cache.geometry, self.cache.block_size, self._device)

    def pack_tokens(self, layout: StepLayout, tokens: Sequence[Sequence[int]]) -> torch.Tensor:
        """Tokens of each input slice, packed in the layout's order: ``[T]`` on the device."""
        packed = [token for index in layout.order for token in tokens[index]]
        return torch.tensor(packed, dtype=torch.int64).to(self._device)

    def reorder(self, layout: StepLayout, tokens: torch.Tensor) -> torch.Tensor:
        """One device token per input slice, ``[num_slices]``, in packed order: ``[T]`` with T = num_slices."""
        if layout.order == tuple(range(len(layout.order))):
            return tokens
        return tokens.index_select(0, torch.tensor(layout.order, dtype=torch.int64).to(self._device))

    def forward(self, layout: StepLayout, tokens: torch.Tensor, logit_rows: Sequence[int]) -> torch.Tensor | None:
        """Run the model over one packed step and write its keys and values.

        Args:
            layout: From ``plan``.
            tokens: ``[T]`` token ids in packed order, on the device.
            logit_rows: Packed positions whose logits are wanted.

        Returns:
            ``[len(logit_rows), vocab_size]`` on the device, or None when no row is wanted.
        """
        hidden = self._decoder(
            input_ids=tokens.unsqueeze(0),
            position_ids=layout.positions,
            use_cache=False,
            paged_step=PagedStep(self.cache, layout),
        ).last_hidden_state
        if not logit_rows:
            return None
        # [T, hidden_size]
        hidden = hidden.view(layout.num_tokens, -1)
        if len(logit_rows) < layout.num_tokens or list(logit_rows) != list(range(layout.num_tokens)):
            hidden = hidden.index_select(0, torch.tensor(logit_rows, dtype=torch.int64).to(self._device))
        logits: torch.Tensor = self._head(hidden)
        return logits
