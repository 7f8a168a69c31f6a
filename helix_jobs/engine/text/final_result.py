"""The result of a sequence that has ended, from its text's parts, its form and its log probabilities."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from helix_jobs.engine.text.final_logprobs import with_logprobs
from helix_jobs.engine.text.final_text import fail, is_valid, result_of
from helix_jobs.exhaustion import is_shortage

if TYPE_CHECKING:
    from helix_jobs.engine.request import GenerationResult
    from helix_jobs.engine.text.chat_forms import ChatForms
    from helix_jobs.engine.text.codec import TextCodec
    from helix_jobs.engine.text.final_text import EndedOutput


def final_result(sequence: EndedOutput, codec: TextCodec, forms: ChatForms) -> GenerationResult:
    """The result of one choice; a request whose output cannot be read fails alone.

    Args:
        sequence: The choice that has ended.
        codec: Decodes the output.
        forms: What the model writes beside words.

    Raises:
        MemoryError, OSError, RuntimeError: The machine is short of a resource; the request is not at fault.
    """
    try:
        result = replace(result_of(sequence, codec, forms), is_valid=is_valid(sequence))
        return with_logprobs(result, sequence, codec)
    except Exception as error:
        if is_shortage(error):
            raise
        fail(sequence, error)
        return sequence.result("")
