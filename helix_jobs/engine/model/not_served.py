"""Why architectures are not served: one table, which refusals quote."""

from __future__ import annotations

from typing import Final

# Why the architectures that people ask for most are refused. The others are refused without a reason.
NOT_SERVED: Final = {
    "deepseek_v2": "latent attention and experts",
    "deepseek_v3": "latent attention and experts",
    "falcon_h1": "layers of recurrent state",
    "falcon_mamba": "recurrent state instead of attention",
    "gemma2": "soft-capped scores and sliding windows",
    "gemma3": "sliding windows and images",
    "gemma3_text": "sliding windows",
    "gemma3n": "sliding windows and shared keys",
    "jamba": "layers of recurrent state and experts",
    "llama4": "chunked attention and experts",
    "llama4_text": "chunked attention and experts",
    "mamba": "recurrent state instead of attention",
    "mamba2": "recurrent state instead of attention",
    "minimax": "linear attention and experts",
    "phimoe": "experts",
    "qwen2_vl": "images",
    "qwen2_5_vl": "images",
    "qwen3_next": "linear attention and experts",
    "rwkv": "recurrent state instead of attention",
    "t5": "an encoder",
}
