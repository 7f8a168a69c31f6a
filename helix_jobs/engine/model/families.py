"""From a loaded transformers model to a ``Decoder``: the one place that knows how each family names its parts.

The model is consumed layer by layer, and weights that are not stacked are copied, because transformers hands out views
of the mapped file. If that file were cut short while mapped, reading a missing page would kill the process. Mapped
pages also count as the process's memory.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from helix_jobs.engine.attention.backend import AttentionSpec, LayerAttention
from helix_jobs.engine.attention.dense import DenseAttention
from helix_jobs.engine.attention.kv_cache import CacheGeometry
from helix_jobs.engine.attention.rotary import RotaryTable
from helix_jobs.engine.model.activations import ACTIVATIONS, activation_name
from helix_jobs.engine.model.decoder import Decoder, DecoderLayer
from helix_jobs.engine.model.feed_forward import GatedFeedForward, PlainFeedForward
from helix_jobs.engine.model.norms import LayerNorm, RmsNorm
from helix_jobs.engine.model.placement import Placement
from helix_jobs.engine.weights.linear import DenseLinear

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel


def build_decoder(model: PreTrainedModel, placement: Placement | None = None) -> Decoder:
    """Take a causal language model apart; its configuration has passed ``check_architecture``.

    The model cannot be used afterwards.

    Args:
        model: The model; on the host if its weights are to be placed elsewhere.
        placement: Dtype and device of the decoder; the model's own by default.

    Raises:
        Float16OverflowError: See ``Placement``.
    """
    build = _FAMILIES.get(model.config.model_type, _gated)
    with torch.no_grad():
        return build(model, placement or Placement.of(model))


def _gated(model: Any, place: Placement) -> Decoder:  # noqa: ANN401  (its modules' attributes are Tensor | Module)
    """Llama and its kin: RMS norms, rotary positions, a gated MLP."""
    config, base = model.config, model.base_model
    geometry = CacheGeometry.of(config)
    is_gemma = config.model_type == "gemma"
    norm = partial(_rms_norm, place, offset=1.0 if is_gemma else 0.0, eps=config.rms_norm_eps)
    activation = ACTIVATIONS[activation_name(config)]
    layers, attentions = [], []
    for index in range(len(base.layers)):
        layer = base.layers[index]
        attention, mlp = layer.self_attn, layer.mlp
        if hasattr(attention, "qkv_proj"):  # Phi-3 stores them stacked already
            qkv, gate_up = _linear(place, attention.qkv_proj), _linear(place, mlp.gate_up_proj)
        else:
            qkv = _linear(place, attention.q_proj, attention.k_proj, attention.v_proj)
            gate_up = _linear(place, mlp.gate_proj, mlp.up_proj)
        head_norms = (norm(attention.q_norm), norm(attention.k_norm)) if hasattr(attention, "q_norm") else ()
        attentions.append(LayerAttention(float(attention.scaling), *head_norms))
        layers.append(
            DecoderLayer(
                attention_norm=norm(layer.input_layernorm),
                qkv=qkv,
                attention_out=_linear(place, attention.o_proj),
                feed_forward_norm=norm(layer.post_attention_layernorm),
                feed_forward=GatedFeedForward(gate_up, _linear(place, mlp.down_proj), activation),
            )
        )
        base.layers[index] = nn.Identity()
    embedding = place.take(base.embed_tokens.weight)
    scale = torch.tensor(config.hidden_size**0.5, dtype=embedding.dtype) if is_gemma else None
    rotary = _rotary(base.rotary_emb, geometry.head_dim, embedding)
    return Decoder(
        attention=_attention(config, rotary, attentions),
        embedding=embedding,
        embedding_scale=None if scale is None else scale.to(embedding.device),
        position_embedding=None,
        layers=tuple(layers),
        final_norm=norm(base.norm),
        head=_head(place, model.lm_head, base.embed_tokens.weight, embedding),
        has_parallel_residual=False,
        dtype=embedding.dtype,
        device=embedding.device,
    )


def _gpt2(model: Any, place: Placement) -> Decoder:  # noqa: ANN401  (as above)
    """GPT-2: layer norms, learned positions, transposed weights."""
    config, base = model.config, model.base_model
    activation = ACTIVATIONS[activation_name(config)]
    layers = []
    for index in range(len(base.h)):
        layer = base.h[index]
        layers.append(
            DecoderLayer(
                attention_norm=_layer_norm(place, layer.ln_1),
                qkv=_transposed(place, layer.attn.c_attn),
                attention_out=_transposed(place, layer.attn.c_proj),
                feed_forward_norm=_layer_norm(place, layer.ln_2),
                feed_forward=PlainFeedForward(
                    _transposed(place, layer.mlp.c_fc), _transposed(place, layer.mlp.c_proj), activation
                ),
            )
        )
        base.h[index] = nn.Identity()
    embedding = place.take(base.wte.weight)
    attentions = [LayerAttention(_gpt2_scaling(config, index)) for index in range(len(layers))]
    return Decoder(
        attention=_attention(config, None, attentions),
        embedding=embedding,
        embedding_scale=None,
        position_embedding=place.take(base.wpe.weight),
        layers=tuple(layers),
        final_norm=_layer_norm(place, base.ln_f),
        head=_head(place, model.lm_head, base.wte.weight, embedding),
        has_parallel_residual=False,
        dtype=embedding.dtype,
        device=embedding.device,
    )


def _gpt2_scaling(config: Any, layer: int) -> float:  # noqa: ANN401  (a transformers configuration)
    scaling = (config.hidden_size // config.num_attention_heads) ** -0.5 if config.scale_attn_weights else 1.0
    return scaling / (layer + 1) if config.scale_attn_by_inverse_layer_idx else scaling


def _gpt_neox(model: Any, place: Placement) -> Decoder:  # noqa: ANN401  (as above)
    """GPT-NeoX (Pythia): layer norms, partly rotated heads, attention and MLP in parallel."""
    config, base = model.config, model.base_model
    geometry = CacheGeometry.of(config)
    activation = ACTIVATIONS[activation_name(config)]
    layers = []
    for index in range(len(base.layers)):
        layer = base.layers[index]
        layers.append(
            DecoderLayer(
                attention_norm=_layer_norm(place, layer.input_layernorm),
                qkv=_regrouped(place, layer.attention.query_key_value, config.num_attention_heads, geometry.head_dim),
                attention_out=_linear(place, layer.attention.dense),
                feed_forward_norm=_layer_norm(place, layer.post_attention_layernorm),
                feed_forward=PlainFeedForward(
                    _linear(place, layer.mlp.dense_h_to_4h), _linear(place, layer.mlp.dense_4h_to_h), activation
                ),
            )
        )
        base.layers[index] = nn.Identity()
    embedding = place.take(base.embed_in.weight)
    rotary = _rotary(base.rotary_emb, geometry.head_dim, embedding)
    return Decoder(
        attention=_attention(config, rotary, [LayerAttention(geometry.head_dim**-0.5)] * len(layers)),
        embedding=embedding,
        embedding_scale=None,
        position_embedding=None,
        layers=tuple(layers),
        final_norm=_layer_norm(place, base.final_layer_norm),
        head=_head(place, model.get_output_embeddings(), base.embed_in.weight, embedding),
        has_parallel_residual=bool(config.use_parallel_residual),
        dtype=embedding.dtype,
        device=embedding.device,
    )


_FAMILIES: Final = {"gpt2": _gpt2, "gpt_neox": _gpt_neox}


def _attention(config: Any, rotary: RotaryTable | None, layers: Sequence[LayerAttention]) -> DenseAttention:  # noqa: ANN401  (as above)
    return DenseAttention(
        AttentionSpec(
            geometry=CacheGeometry.of(config),
            num_heads=config.num_attention_heads,
            rotary=rotary,
            layers=tuple(layers),
        )
    )


def _head(place: Placement, module: nn.Linear, tied_to: torch.Tensor, embedding: torch.Tensor) -> DenseLinear:
    """The output head; one that is tied to the embedding keeps sharing its memory."""
    if module.weight is tied_to:
        return DenseLinear(embedding, _bias(place, module))
    return _linear(place, module)


def _linear(place: Placement, *modules: nn.Linear) -> DenseLinear:
    if len(modules) == 1:
        return DenseLinear(place.take(modules[0].weight), _bias(place, modules[0]))
    biases = [None if module.bias is None else place.cast(module.bias) for module in modules]
    return _moved(place, DenseLinear.stacked([place.cast(module.weight) for module in modules], biases))


def _bias(place: Placement, module: Any) -> torch.Tensor | None:  # noqa: ANN401  (whatever has a bias, or none)
    return None if module.bias is None else place.take(module.bias)


def _moved(place: Placement, made: DenseLinear) -> DenseLinear:
    return DenseLinear(place.move(made.weight), None if made.bias is None else place.move(made.bias))


def _transposed(place: Placement, module: Any) -> DenseLinear:  # noqa: ANN401  (transformers' Conv1D)
    return DenseLinear(place.move(place.cast(module.weight).t().contiguous()), place.take(module.bias))


def _regrouped(place: Placement, module: nn.Linear, num_heads: int, head_dim: int) -> DenseLinear:
    """GPT-NeoX stores query, key and value head by head; here all queries come first, then keys, then values."""

    def regroup(rows: torch.Tensor) -> torch.Tensor:
        values = place.cast(rows)
        return place.move(values.view(num_heads, 3, head_dim, -1).transpose(0, 1).reshape(rows.shape).contiguous())

    return DenseLinear(regroup(module.weight), None if module.bias is None else regroup(module.bias))


def _rms_norm(place: Placement, module: Any, *, offset: float, eps: float) -> RmsNorm:  # noqa: ANN401  (own classes)
    if offset == 0.0:
        return RmsNorm(place.take(module.weight), eps)
    # Gemma stores the weight minus one, and the sum would not survive rounding to bfloat16.
    return RmsNorm(place.move(place.cast(module.weight).float() + offset), eps)


def _layer_norm(place: Placement, module: nn.LayerNorm) -> LayerNorm:
    return LayerNorm(place.take(module.weight), _bias(place, module), module.eps)


def _rotary(module: Any, head_dim: int, like: torch.Tensor) -> RotaryTable:  # noqa: ANN401  (as above)
    return RotaryTable(module.inv_freq, float(module.attention_scaling), head_dim, like.dtype, like.device)
