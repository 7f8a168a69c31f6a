"""Model files as people have them: tiny, random, in every accepted form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
from tiny_models import CPU, tiny_model, tokenizer
from tokenizers.pre_tokenizers import ByteLevel

from helix_jobs.engine.model_loader import LoadedModels, load_models

if TYPE_CHECKING:
    import torch


def save_checkpoint(folder: Path, model: Any = None, tok: Any = None, **save: Any) -> Path:
    """A transformers directory, as ``save_pretrained`` writes it."""
    (tiny_model() if model is None else model).save_pretrained(folder, **save)
    (tok or tokenizer()).save_pretrained(folder)
    return folder


def edit_config(folder: Path, **changes: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


def load(
    target: Path | str, draft: Path | str = "none", *, dtype: str = "auto", home: Path | None = None
) -> LoadedModels:
    return load_models(
        str(target), str(draft), device=CPU, dtype=dtype, home=home or Path("unused"), on_progress=lambda _: None
    )


GGUF_EOS = "<|im_end|>"


def write_gguf(path: Path) -> Any:
    """A llama model in float32 with a byte-level vocabulary, as llama.cpp writes it; returns the model."""
    tokens = ["<|im_start|>", GGUF_EOS, *sorted(ByteLevel.alphabet()), "he", "lo"]
    model = tiny_model(vocab_size=len(tokens))
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, *[1] * (len(tokens) - 2)])
    writer.add_token_merges(["h e", "l o"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}")
    for name, weight in model.state_dict().items():
        writer.add_tensor(_gguf_name(name), _gguf_weight(name, weight, config).numpy().copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


_GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "model.layers": "blk",
}


def _gguf_name(name: str) -> str:
    for theirs, ours in _GGUF_NAMES.items():
        name = name.replace(theirs, ours)
    return name


def _gguf_weight(name: str, weight: torch.Tensor, config: Any) -> torch.Tensor:
    """llama.cpp stores rotary pairs side by side."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for part, count in heads.items():
        if part in name:
            return weight.view(count, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
    return weight
