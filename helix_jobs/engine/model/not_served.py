"""Why architectures are not served: one table, which refusals quote."""

from __future__ import annotations

from typing import Final

_BY_REASON: Final = {
    "experts in grouped matrices": ("aria_text",),
    "heads that are chosen as experts are": ("jetmoe",),
    "heads of a number by layer, and gates without a bound": ("laguna",),
    "attention to keys that their values choose": ("doge",),
    "the mean of experts and a shared expert": ("cohere2_moe",),
    "frequencies by layer": ("granite_swa", "granitemoe_swa"),
    "a factor of values, and key-value heads of a number by layer": ("mimo_v2_flash",),
    "latent attention to keys that an index chooses": (
        *("axk2", "deepseek_v32", "dots3_note", "dots3_note_text", "glm_moe_dsa"),
    ),
    "attention to keys that an index chooses": ("minimax_m3_vl_text",),
    "gates of attention with a bias for each head, and factors of the residual by layer": ("beam",),
    "residual streams that are mixed by hyper-connections": ("deepseek_v4", "hy_v4"),
    "two latent attentions a layer, and experts that compute nothing": ("longcat_flash",),
    "attention that weighs keys by distance, and experts": ("inkling2_text", "inkling_text"),
    "chunked attention and experts": ("llama4", "llama4_text"),
    "lightning attention and experts": ("minimax",),
    "linear attention and experts": ("bailing_hybrid", "kimi_linear"),
    "linear attention beside attention to keys that an index chooses": ("qwen4_exp", "qwen4_exp_text"),
    "convolutions inside attention": ("zaya",),
    "layers of recurrent state": ("recurrent_gemma", "zamba", "zamba2"),
    "recurrent state instead of attention": ("falcon_mamba", "mamba", "mamba2", "rwkv", "xlstm"),
    "layers that are computed several times": ("hrm_text",),
    "differences of two attentions": ("diffllama",),
    "biases of scores by distance (ALiBi)": ("bloom", "mpt"),
    "biases of scores by distance": ("cpmant",),
    "weights of three values": ("bitnet",),
    "bytes in patches instead of tokens": ("blt",),
    "queries, keys and values in an order of its own": ("codegen", "persimmon"),
    "a bias in the last layer alone": ("gpt_neox_japanese",),
    "norms behind the residual alone": ("openai-gpt",),
    "a layer between the last norm and the output head": ("modernbert-decoder",),
    "a draft head, which is no model by itself": ("gemma4_assistant", "gemma4_unified_assistant"),
    "another name of gpt2, which config.json has to say": ("gpt-sw3",),
    "images": (
        *("cohere_compass_text", "emu3", "fuyu", "gemma4_unified", "gemma4_unified_text", "git", "got_ocr2"),
        *("mllama", "paligemma", "phi4_multimodal"),
    ),
    "a factor of logits that transformers leaves out": ("aya_vision", "cohere2_vision"),
    "sounds": ("moshi", "moss_transcribe_diarize", "musicgen", "musicgen_melody"),
    "an encoder": (
        *("bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "marian", "mbart", "mvp", "pegasus", "plbart"),
        *("prophetnet", "t5", "trocr", "umt5", "whisper"),
    ),
    "attention in both directions": (
        *("bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert"),
        *("rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta", "xlm-roberta-xl"),
        *("xlm", "xmod"),
    ),
    "attention by hashes": ("reformer",),
    "tokens predicted in any order": ("xlnet",),
    "positions of sines and cosines": ("ctrl", "xglm"),
}
# Why an architecture of transformers is refused; tests ask for a reason of each one that generates text.
NOT_SERVED: Final = {model_type: reason for reason, types in _BY_REASON.items() for model_type in types}
