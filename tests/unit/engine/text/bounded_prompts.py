"""What a PromptEncoder is made of: the tokenizer of a template, and limits that end an endless one soon."""

from __future__ import annotations

from helix_jobs.engine.text.bounded_process import ProcessLimits
from helix_jobs.engine.text.prompt_encoder import PromptLimits
from tests.unit.engine.tiny_models import tokenizer

# Far more than an honest prompt of these tests needs, and soon over for one that would need for ever.
SHORT = PromptLimits(seconds=0.5, process=ProcessLimits(memory_bytes=500_000_000, wall_factor=120))


def with_template(source):
    made = tokenizer()
    made.chat_template = source
    return made
