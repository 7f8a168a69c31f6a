"""A directory's tokenizer is read in a separate process before the worker reads it.

On some files the library panics, aborts or grows without end, and takes its process down.

Trade-off: the tokenizer is read once more, and a process is started for it: 0.1 s of processor time for SmolLM2's
49,152 tokens, 0.3 s for Qwen2.5's 151,936 (Zen 4). In return a hostile file causes an error message instead of the
worker's end.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from helix_jobs.engine.model.model_words import subject
from helix_jobs.engine.text.bounded_process import BoundedProcess, ProcessEndedError
from helix_jobs.engine.text.prompt_encoder import DEFAULT_LIMITS, PromptLimits
from helix_jobs.errors import ExhaustedError, ModelError
from helix_jobs.exhaustion import explain_exhaustion, is_shortage

if TYPE_CHECKING:
    from pathlib import Path


def try_tokenizer(name: str, folder: Path, limits: PromptLimits = DEFAULT_LIMITS) -> None:
    """Refuse a tokenizer that cannot be read within the limits.

    Args:
        name: The model's name as the user gave it.
        folder: The model's directory.
        limits: Limits of reading; the same limits hold wherever prompts are encoded.

    Raises:
        ExhaustedError: The system cannot start a process.
        ModelError: The message says what happens on reading it.
    """
    setup = {
        "folder": str(folder.resolve()),
        "seconds": limits.seconds if limits.bounds_itself else 0,
        "memory_bytes": limits.process.memory_bytes if limits.bounds_itself else 0,
    }
    try:
        process = BoundedProcess("helix_jobs.engine.loading.tokenizer_process", limits.process)
    except (OSError, RuntimeError, MemoryError) as error:
        if not is_shortage(error):
            raise
        raise ExhaustedError(explain_exhaustion(error)) from error
    try:
        fault = process.ask(json.dumps(setup).encode() + b"\n", limits.seconds)["fault"]
    except ProcessEndedError as error:
        raise ModelError(
            f"{subject(name, folder)} has a tokenizer that cannot be read: the process that tried {error}; fetch the "
            "model again, tokenizer files included"
        ) from error
    finally:
        process.kill()
    if fault:
        raise ModelError(f"model {name}: its tokenizer {fault}")
