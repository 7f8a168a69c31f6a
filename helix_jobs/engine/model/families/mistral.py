"""Mistral: Llama; a sliding window, if there is one, is that of every layer."""

from __future__ import annotations

from helix_jobs.engine.model.families import llama
from helix_jobs.engine.model.families.family import Family

FAMILY = Family("mistral", "MistralForCausalLM", llama.describe)
