"""The names of each architecture's tensors in GGUF files and in transformers.

Only names that transformers' reader maps are listed: it would silently drop a tensor under any other name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from helix_jobs.engine.loading.stored_tensor import StoredTensor

if TYPE_CHECKING:
    from collections.abc import Mapping

_BLOCK: Final = re.compile(r"blk\.(\d{1,9})\.(.+)")


@dataclass(frozen=True, slots=True)
class _Names:
    """Module names of one architecture, without ``.weight`` and ``.bias``.

    Attributes:
        outer: Modules outside the layers.
        layers: Transformers' name for the list of layers.
        inner: Modules inside a layer.
        transposed: Modules whose weights transformers stores transposed.
    """

    outer: Mapping[str, str]
    layers: str
    inner: Mapping[str, str]
    transposed: frozenset[str] = frozenset()


_OUTER: Final = {"token_embd": "embed_tokens", "output_norm": "norm", "output": "lm_head"}
_NORMS: Final = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
_LLAMA: Final = {
    **_NORMS,
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_ARCHITECTURES: Final = {
    "llama": _Names(_OUTER, "layers", _LLAMA),
    "qwen2": _Names(_OUTER, "layers", _LLAMA),
    "qwen3": _Names(_OUTER, "layers", {**_LLAMA, "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}),
    "phi3": _Names(
        _OUTER,
        "layers",
        {
            **_NORMS,
            "attn_qkv": "self_attn.qkv_proj",
            "attn_output": "self_attn.o_proj",
            "ffn_up": "mlp.gate_up_proj",
            "ffn_down": "mlp.down_proj",
        },
    ),
    "gpt2": _Names(
        {"token_embd": "wte", "position_embd": "wpe", "output_norm": "ln_f", "output": "lm_head"},
        "h",
        {
            "attn_norm": "ln_1",
            "attn_qkv": "attn.c_attn",
            "attn_output": "attn.c_proj",
            "ffn_norm": "ln_2",
            "ffn_up": "mlp.c_fc",
            "ffn_down": "mlp.c_proj",
        },
        frozenset({"attn_qkv", "attn_output", "ffn_up", "ffn_down"}),
    ),
}
GGUF_ARCHITECTURES: Final = tuple(_ARCHITECTURES)


def transformers_tensors(architecture: str, tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Return the tensors under the names and in the shapes that transformers gives them; unknown names stay."""
    names = _ARCHITECTURES[architecture]
    renamed = {}
    for tensor, stored in tensors.items():
        block = _BLOCK.fullmatch(tensor.rpartition(".")[0])
        is_transposed = block is not None and block[2] in names.transposed and tensor.endswith(".weight")
        shape = stored.shape[::-1] if is_transposed else stored.shape
        renamed[transformers_name(architecture, tensor)] = StoredTensor(stored.kind, shape)
    return renamed


def transformers_name(architecture: str, tensor: str) -> str:
    """Return the name that transformers gives a tensor of a file; an unknown name stays."""
    names = _ARCHITECTURES[architecture]
    module, _, kind = tensor.rpartition(".")
    block = _BLOCK.fullmatch(module)
    theirs = names.inner.get(block[2]) if block else names.outer.get(module)
    if theirs is None or kind not in ("weight", "bias"):
        return tensor
    prefix = f"{names.layers}.{block[1]}." if block else ""
    return f"{prefix}{theirs}.{kind}"
