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
# The files' tensors of all experts of a layer, ``[num_experts, out_features, in_features]``, and the parameters that
# transformers 5 makes of them: gates and up projections are one, in this order.
_STACKS: Final = {
    "mlp.experts.gate_up_proj": ("ffn_gate_exps", "ffn_up_exps"),
    "mlp.experts.down_proj": ("ffn_down_exps",),
}
_STACKED: Final = {part: stack for stack, parts in _STACKS.items() for part in parts}


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
_SPARSE: Final = {**_LLAMA, "ffn_gate_inp": "mlp.gate"}
_HEAD_NORMS: Final = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_ARCHITECTURES: Final = {
    "llama": _Names(_OUTER, "layers", _SPARSE),  # Mixtral's files say llama
    "qwen2": _Names(_OUTER, "layers", _LLAMA),
    "qwen3": _Names(_OUTER, "layers", {**_LLAMA, **_HEAD_NORMS}),
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
    "qwen2moe": _Names(
        _OUTER,
        "layers",
        {
            **_SPARSE,
            "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
            "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
            "ffn_up_shexp": "mlp.shared_expert.up_proj",
            "ffn_down_shexp": "mlp.shared_expert.down_proj",
        },
    ),
    "qwen3moe": _Names(_OUTER, "layers", {**_SPARSE, **_HEAD_NORMS}),
    "olmoe": _Names(_OUTER, "layers", {**_SPARSE, **_HEAD_NORMS}),
}
GGUF_ARCHITECTURES: Final = tuple(_ARCHITECTURES)
# A matrix of one row, which files store as a vector.
_ROW: Final = ".ffn_gate_inp_shexp.weight"


def transformers_tensors(architecture: str, tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Return the tensors under the names and in the shapes that transformers gives them; unknown names stay."""
    names = _ARCHITECTURES[architecture]
    renamed = {}
    for stack, parts in stacks_of(architecture, tensors).items():
        renamed[stack] = _merged([tensors[part] for part in parts])
    for tensor, stored in tensors.items():
        if _is_stacked(tensor):
            continue
        block = _BLOCK.fullmatch(tensor.rpartition(".")[0])
        is_transposed = block is not None and block[2] in names.transposed and tensor.endswith(".weight")
        shape = stored.shape[::-1] if is_transposed else stored.shape
        if tensor.endswith(_ROW):
            shape = (1, *shape[-1:])
        renamed[transformers_name(architecture, tensor)] = StoredTensor(stored.kind, shape)
    return renamed


def stacks_of(architecture: str, tensors: Mapping[str, StoredTensor]) -> dict[str, tuple[str, ...]]:
    """Transformers' parameters of whole layers of experts, and the file's tensors of which each consists."""
    layers = _ARCHITECTURES[architecture].layers
    found = {}
    for tensor in tensors:
        block = _BLOCK.fullmatch(tensor.rpartition(".")[0])
        if block is not None and block[2] in _STACKED and _is_stacked(tensor):
            stack = _STACKED[block[2]]
            parts = tuple(f"blk.{block[1]}.{part}.weight" for part in _STACKS[stack])
            if all(part in tensors for part in parts):  # else the layout lacks the parameter
                found[f"{layers}.{block[1]}.{stack}"] = parts
    return found


def _is_stacked(tensor: str) -> bool:
    module, _, kind = tensor.rpartition(".")
    block = _BLOCK.fullmatch(module)
    return block is not None and block[2] in _STACKED and kind == "weight"


def _merged(parts: list[StoredTensor]) -> StoredTensor:
    """Several tensors as one, their matrices' outputs side by side.

    Trade-off: parts of different types count as plain numbers, which reckons with too much memory.
    """
    kinds, first = {part.kind for part in parts}, parts[0].shape
    rows = sum(part.shape[1] if len(part.shape) == len(first) else 0 for part in parts) if len(first) > 1 else 0
    return StoredTensor(kinds.pop() if len(kinds) == 1 else "F32", (first[0], rows, *first[2:]))


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
