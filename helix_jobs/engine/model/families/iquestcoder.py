"""IQuest-Coder: Llama under another name."""

from __future__ import annotations

from helix_jobs.engine.model.families import llama
from helix_jobs.engine.model.families.family import Family

FAMILY = Family("iquestcoder", "LlamaForCausalLM", llama.describe, other_names=("IQuestCoderForCausalLM",))
