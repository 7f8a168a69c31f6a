"""InternLM 3: Llama under another name."""

from __future__ import annotations

from helix_jobs.engine.model.families import llama
from helix_jobs.engine.model.families.family import Family

FAMILY = Family("internlm3", "LlamaForCausalLM", llama.describe, other_names=("InternLM3ForCausalLM",))
