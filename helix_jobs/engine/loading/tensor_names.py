"""The meaning of tensor names in a checkpoint, whichever release of transformers wrote them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from helix_jobs.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from helix_jobs.engine.loading.stored_tensor import StoredTensor

HEAD: Final = "lm_head.weight"
# The names of GPT-NeoX's output head in transformers 4, and of BioGPT's.
_OTHER_HEADS: Final = ("embed_out.weight", "output_projection.weight")
_PREFIX: Final = re.compile(r"(model|transformer|gpt_neox|biogpt)\.")
_LAYER: Final = re.compile(r"(?:decoder\.)?(?:layers|h|blocks)\.(\d{1,9})\.")
# Buffers that older releases stored beside the weights and every release computes anew: the inverse frequencies of
# rotary positions, which follow from config.json, and GPT-2's and GPT-NeoX's causal masks with the number they masked
# with.
_COMPUTED: Final = re.compile(
    r"(layers\.\d+\.(self_attn|attention)\.)?rotary_emb\.inv_freq"
    r"|h\.\d+\.attn\.(bias|masked_bias)"
    r"|layers\.\d+\.attention\.(bias|masked_bias)"
)


def canonical(tensor: str) -> str:
    """Return a tensor's name without the prefix that only models with a head have."""
    found = _PREFIX.match(tensor)
    short = tensor[found.end() :] if found else tensor
    return HEAD if short in _OTHER_HEADS else short


def is_computed(tensor: str) -> bool:
    """Whether the tensor is a buffer that is computed anew and need not be read."""
    return _COMPUTED.fullmatch(canonical(tensor)) is not None


def without_layers_from(count: object, tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The tensors without those of layers behind the first ``count``."""
    if type(count) is not int:
        return dict(tensors)
    return {tensor: stored for tensor, stored in tensors.items() if not is_of_layer_from(count, tensor)}


def is_of_layer_from(count: int, tensor: str) -> bool:
    """Whether the tensor belongs to a layer behind the first ``count``."""
    found = _LAYER.match(canonical(tensor))
    return found is not None and int(found[1]) >= count


def check_layers(name: str, wanted: object, tensors: Iterable[str]) -> None:
    """Refuse a number of layers that the files do not have: building as many as a header states may take for ever.

    Raises:
        ModelError: The two differ.
    """
    there = 1 + max((int(found[1]) for found in map(_LAYER.match, map(canonical, tensors)) if found), default=-1)
    if wanted != there:
        raise ModelError(
            f"model {name}: its configuration says {wanted!r:.40} layers and its files have {there}; fetch the model "
            "again, configuration and weights together"
        )
