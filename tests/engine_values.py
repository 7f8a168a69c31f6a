"""The modules of the engine's floor that every room may import."""

from __future__ import annotations

# What a request is and what an engine answers to. Everybody may name these; no other module of the engine's own floor.
ENGINE_VALUES = {
    "cache_sections",
    "chat_options",
    "config",
    "constraint",
    "field_checks",
    "grammar_text",
    "matcher",
    "multiples",
    "partial_output",
    "prompt_truncation",
    "protocol",
    "reasoning",
    "request",
    "sampling_params",
    "score_choices",
    "state_span",
}
