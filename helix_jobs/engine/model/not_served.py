"""Why architectures are not served: one table, which refusals quote."""

from __future__ import annotations

from typing import Final

_BY_REASON: Final = {
    "parts that are served, but not together": ("exaone_moe", "flex_olmo", "solar_open"),
    "experts that are stored in one matrix": ("dbrx",),
    "heads that are chosen as experts are": ("jetmoe",),
    "experts chosen by a sparse mixer": ("phimoe",),
    "the mean of experts and a shared expert": ("cohere2_moe",),
    "frequencies by layer": ("granite_swa",),
    "a factor of values": ("mimo_v2_flash",),
    "latent attention to keys that an index chooses": ("deepseek_v32",),
    "two latent attentions a layer, and experts that compute nothing": ("longcat_flash",),
    "chunked attention and experts": ("llama4", "llama4_text"),
    "lightning attention and experts": ("minimax",),
    "linear attention and experts": ("kimi_linear",),
    "layers of recurrent state": ("recurrent_gemma", "zamba", "zamba2"),
    "layers of recurrent state and experts": ("jamba",),
    "recurrent state instead of attention": ("falcon_mamba", "mamba", "mamba2", "rwkv", "xlstm"),
    "differences of two attentions": ("diffllama",),
    "biases of scores by distance (ALiBi)": ("bloom", "mpt"),
    "weights of three values": ("bitnet",),
    "images": ("idefics3", "internvl", "llava", "mllama", "paligemma", "qwen2_vl"),
    "an encoder": (
        *("bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "marian", "mbart", "mvp", "pegasus", "plbart"),
        *("prophetnet", "t5", "trocr", "umt5", "whisper"),
    ),
    "attention in both directions": (
        *("bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert"),
        *("rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta", "xlm-roberta-xl"),
        *("xmod",),
    ),
    "attention by hashes": ("reformer",),
    "tokens predicted in any order": ("xlnet",),
    "positions of sines and cosines": ("ctrl", "xglm"),
}
# Why the architectures that people ask for most are refused. The others are refused without a reason.
NOT_SERVED: Final = {model_type: reason for reason, types in _BY_REASON.items() for model_type in types}
