"""BareModel: a transformers model without memory for its weights, filled weight by weight by a reader of ours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from helix_jobs.engine.loading.model_sizes import skeleton
from helix_jobs.engine.loading.tensor_names import HEAD, canonical

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from helix_jobs.engine.weights.block_matrix import BlockMatrix
    from helix_jobs.engine.weights.block_stack import BlockStack

_HEAD_MODULE = HEAD.removesuffix(".weight")


class BareModel:
    """A model that takes its weights one by one, under their canonical names.

    Attributes:
        base: The model without its output head.
        embedding: The module of its token embedding.
    """

    def __init__(self, name: str, config: PretrainedConfig) -> None:
        self._model = skeleton(name, config)
        self.base: Any = self._model.base_model
        self.embedding = self._model.get_input_embeddings()
        self._head = self._model.get_output_embeddings()
        needed = set(map(canonical, self._model.state_dict()))
        # A head that is the embedding may be stored as well; ``read_weights`` has compared the two.
        self._needed = needed - {HEAD} if config.tie_word_embeddings else needed
        self._has_head = False
        _compute_frequencies(self.base, config)

    def needs(self, weight: str) -> bool:
        """Whether the model takes this weight: no buffer that it computes, no part that only drafts, no tied head."""
        return weight in self._needed

    def module(self, weight: str) -> nn.Module:
        """The module whose parameter, or buffer, the weight is."""
        module_name, _, _ = weight.rpartition(".")
        found: nn.Module = self._head if module_name == _HEAD_MODULE else self.base.get_submodule(module_name)
        return found

    def put(self, weight: str, value: torch.Tensor | BlockMatrix | BlockStack) -> None:
        """Give the model one of its weights."""
        self._has_head = self._has_head or weight == HEAD
        _put(self.module(weight), weight.rpartition(".")[2], value)

    def whole(self) -> PreTrainedModel:
        """The model, once all of its weights are there. Where no head was put, the embedding is the head."""
        if not self._has_head:
            _put(self._head, "weight", self.embedding.weight)
        model: PreTrainedModel = self._model
        return model


def _compute_frequencies(base: Any, config: PretrainedConfig) -> None:  # noqa: ANN401  (the architecture's class)
    """Make the rotary modules anew: what they computed at first is not in memory."""
    for name, module in list(base.named_children()):  # most call it rotary_emb
        if any(buffer.endswith("inv_freq") for buffer, _ in module.named_buffers(recurse=False)):
            setattr(base, name, type(module)(config))


def _put(module: Any, kind: str, value: torch.Tensor | BlockMatrix | BlockStack) -> None:  # noqa: ANN401  (its parameters' names are the file's)
    is_buffer = kind in dict(module.named_buffers(recurse=False))
    delattr(module, kind)
    if is_buffer:
        module.register_buffer(kind, value)
        return
    if isinstance(value, torch.Tensor) and not isinstance(value, nn.Parameter):
        value = nn.Parameter(value, requires_grad=False)
    setattr(module, kind, value)
