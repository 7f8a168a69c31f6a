"""GgufFamily: one architecture of GGUF files, as a table entry declares it.

An entry says what llama.cpp's converter makes of a family of transformers: which tensors each parameter is made of, and
which settings of the file are settings of the configuration. The converter's arithmetic is undone in ``gguf_weights``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from helix_jobs.engine.loading.gguf_file import GgufFile

# How a parameter of transformers' module follows from tensors of the file.
Form = Literal[
    "plain",  # as it is
    "transposed",  # rows and columns exchanged
    "row",  # a vector as a matrix of one row
    "conv",  # [channels, width] with a length of one between them
    "permuted",  # queries or keys, the two numbers of a rotated pair side by side
    "rows",  # rows of one tensor behind those of another
    "stack",  # matrices of experts, one's outputs behind another's
    "flipped",  # these with rows and columns exchanged
    "paired",  # these with the outputs of two tensors in turn
    "exponential",  # the negative exponential
    "delta",  # queries, keys, values and gates of a delta rule, which transformers has key head by key head
    "decoded",  # a table that does not stay in blocks
    "latent",  # head by head the transposed matrix of keys, and the one of values
    "grouped",  # queries, keys and values, which transformers has group by group: a key's queries, the key, its value
    "flat",  # its numbers in one row
]
# Which rows of a tensor with queries, keys and values are meant.
Share = Literal["all", "queries", "keys", "values"]
# Whether the value heads of a delta rule stand in the file's order, in which the ones of a key head are not neighbours:
# nowhere, in the last rows (or numbers), or in the columns.
Tiling = Literal["none", "rows", "columns"]


OUTER: Final = {"token_embd": "embed_tokens", "output_norm": "norm", "output": "lm_head"}


class Source(NamedTuple):
    """What a parameter is made of.

    Attributes:
        parts: Names of tensors, without their layer's.
        form: See ``Form``.
        tiling: See ``Tiling``.
        share: See ``Share``.
    """

    parts: tuple[str, ...]
    form: Form
    tiling: Tiling = "none"
    share: Share = "all"


class Listed(NamedTuple):
    """Where a parameter of one number comes from.

    Attributes:
        setting: The whole name of the file's list with a number for each layer.
        shape: The parameter's own.
    """

    setting: str
    shape: tuple[int, ...] = ()


def of(*parts: str, form: Form = "plain", tiling: Tiling = "none", share: Share = "all") -> Source:
    """A parameter made of these tensors."""
    return Source(parts, form, tiling, share)


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufFamily:
    """One architecture.

    Attributes:
        model_type: Transformers' name of it.
        modules: Modules of a layer by the names of their tensors, without ``.weight`` and ``.bias``.
        parameters: Parameters of a layer that are not a module's weight or bias as it is stored, and their sources.
        outer: Modules outside the layers.
        stacked: Lists of modules outside the layers, whose matrices are one tensor.
        layers: Transformers' name for the list of layers.
        permuted: Modules whose rows are those of queries or keys with pairs side by side.
        transposed: Modules whose weights transformers stores transposed.
        decoded: Modules whose weights are tables that do not stay in blocks.
        settings: Settings without which the configuration would be another model's, and their names there.
        optional: Settings that count if they are there and not zero.
        constants: Settings of the configuration that every file of the architecture has.
        made: Further settings of the configuration that follow from several facts.
        read_by_made: Settings that ``made`` reads, and without which it could not.
        neutral: Settings that are not read, and the values that change nothing.
        epsilon: The file's name and the configuration's of what norms add.
        window: Which layers have the file's sliding window: none, all, or all but every n-th one. A file may list them.
        scalings: Kinds of scaled positions that are read.
        rope: Settings of rotary positions that are scaled by YaRN or LongRoPE in every file.
        depth_slope: What a file's factor of YaRN's logarithm is multiplied with.
        rope_settings: Settings without which rotary positions would be another model's, and their names there.
        local_theta: Base of the frequencies of layers with a window, where each kind of layers has its own: files may
            state another one; ``shared`` is that of all layers, unscaled.
        rotates_part: Whether a part of each head may be rotated.
        has_frequencies: Whether a file may divide frequencies by numbers of its own; ``proportional`` are those that
            are one, or so large that a pair is not rotated.
        states_original: Whether a file with factors for short and for long texts states how long a text the short ones
            are for; else they are for any.
        needs_base: Whether a file has to state the base of its frequencies, as the usual one is not the family's.
        lacks: Settings of other families that the configuration does not have.
        listed: Parameters of a layer that are numbers of a list.
        local: What stands behind the names of widths of heads in layers with a window, where the others have widths of
            their own.
        is_sparse: Whether it has experts.
        is_latent: Whether it has latent attention, whose widths ``made`` reads.
        by_layer: Settings that are a list with one number for each layer, the same one or zero.
        by_kind: Settings that may be a list with any number for each layer.
        present: Settings of the configuration that say whether layers have a parameter, and that parameter.
        has_draft_layers: Whether files may hold layers behind the last one that only draft further tokens.
    """

    model_type: str
    modules: Mapping[str, str]
    parameters: Mapping[str, Source] = field(default_factory=dict)
    outer: Mapping[str, str] = field(default_factory=lambda: OUTER)
    stacked: Mapping[str, str] = field(default_factory=dict)
    layers: str = "layers"
    permuted: frozenset[str] = frozenset()
    transposed: frozenset[str] = frozenset()
    decoded: frozenset[str] = frozenset()
    settings: Mapping[str, str] = field(default_factory=dict)
    optional: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, Any] = field(default_factory=dict)
    made: Callable[[GgufFile], dict[str, Any]] | None = None
    read_by_made: frozenset[str] = frozenset()
    neutral: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    epsilon: tuple[str, str] = ("attention.layer_norm_rms_epsilon", "rms_norm_eps")
    window: Literal["none", "all"] | int = "none"
    scalings: frozenset[str] = frozenset()
    rope: Mapping[str, Any] = field(default_factory=dict)
    depth_slope: float = 1.0
    rope_settings: Mapping[str, str] = field(default_factory=dict)
    local_theta: float | Literal["shared"] | None = None
    rotates_part: bool = False
    has_frequencies: bool | Literal["proportional"] = False
    states_original: bool = True
    needs_base: bool = False
    lacks: frozenset[str] = frozenset()
    listed: Mapping[str, Listed] = field(default_factory=dict)
    local: str = ""
    is_sparse: bool = False
    is_latent: bool = False
    by_layer: frozenset[str] = frozenset()
    by_kind: frozenset[str] = frozenset()
    present: Mapping[str, str] = field(default_factory=dict)
    has_draft_layers: bool = False


NORMS: Final = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
ATTENTION: Final = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}
HEAD_NORMS: Final = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
FEED_FORWARD: Final = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
LLAMA: Final = {**NORMS, **ATTENTION, **FEED_FORWARD}
# Norms before and behind each part.
NORMS_AROUND: Final = {
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
# Layers with an input of each beside the residual (Gemma 3n and 4).
WITH_LAYER_INPUTS: Final = {
    **ATTENTION,
    **HEAD_NORMS,
    **FEED_FORWARD,
    **NORMS_AROUND,
    "inp_gate": "per_layer_input_gate",
    "proj": "per_layer_projection",
    "post_norm": "post_per_layer_input_norm",
}
LAYER_INPUTS_OUTER: Final = {
    "per_layer_token_embd": "embed_tokens_per_layer",
    "per_layer_model_proj": "per_layer_model_projection",
    "per_layer_proj_norm": "per_layer_projection_norm",
}
_SHARES: Final[tuple[tuple[str, Share], ...]] = (("q_proj", "queries"), ("k_proj", "keys"), ("v_proj", "values"))
PAIRS: Final = frozenset({"attn_q", "attn_k"})
ROTARY: Final = "rope_parameters"
# Heads are equal parts of the hidden size, and the width of the feed-forward has another name.
NO_HEAD_SETTINGS: Final = frozenset({"head_dim", "num_key_value_heads", "intermediate_size"})


# Queries, keys and values in one tensor, where transformers has a module of each; other files have three.
SPLIT: Final = {
    f"self_attn.{module}.{kind}": of(f"attn_qkv.{kind}", share=share)
    for module, share in _SHARES
    for kind in ("weight", "bias")
}


def stacks(block: str) -> dict[str, Source]:
    """The parameters that transformers 5 makes of a layer's experts, gates and up projections as one."""
    return {
        f"{block}.experts.gate_up_proj": of("ffn_gate_exps.weight", "ffn_up_exps.weight", form="stack"),
        f"{block}.experts.down_proj": of("ffn_down_exps.weight", form="stack"),
    }
