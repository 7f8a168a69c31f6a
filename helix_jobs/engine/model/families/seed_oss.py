"""Seed-OSS: Llama with biases of queries, keys and values."""

from __future__ import annotations

from helix_jobs.engine.model.families import llama
from helix_jobs.engine.model.families.family import Family

FAMILY = Family("seed_oss", "SeedOssForCausalLM", llama.describe)
