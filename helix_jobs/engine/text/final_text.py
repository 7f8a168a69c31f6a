"""An output's text: cut at its stop strings, and decoded at its end. One that cannot be decoded fails its request."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from helix_jobs.engine.request import FinishReason
from helix_jobs.errors import EngineError
from helix_jobs.exhaustion import is_shortage

if TYPE_CHECKING:
    from helix_jobs.engine.schedule.sequence import Sequence
    from helix_jobs.engine.text.codec import TextCodec
    from helix_jobs.engine.text.stop_strings import StopStringWatch

logger = logging.getLogger(__name__)


def apply_stop_strings(sequence: Sequence, watch: StopStringWatch, num_new: int) -> int:
    """End the sequence where a stop string does; return how many of its new tokens went.

    Raises:
        MemoryError, OSError, RuntimeError: The machine lacks something; the request is not to blame.
    """
    try:
        found = watch.find(sequence.output_token_ids, num_new)
    except Exception as error:
        if is_shortage(error):
            raise
        _fail(sequence, error)
        return 0
    if found is None:
        return 0
    num_tokens, sequence.stopped_text = found
    num_dropped = sequence.num_output_tokens - num_tokens
    sequence.truncate_output(num_tokens)
    sequence.finish(FinishReason.STOP)
    return num_dropped


def text_of(sequence: Sequence, codec: TextCodec) -> str:
    """The text of an output that has ended; empty, and the request failed, where it cannot be decoded.

    Raises:
        MemoryError, OSError, RuntimeError: As in `apply_stop_strings`.
    """
    if sequence.stopped_text is not None:
        return sequence.stopped_text
    try:
        request = sequence.request
        # An answer is a text of its own; what follows a plain prompt goes on from it.
        context = None if request.is_chat else codec.context(request.prompt_token_ids)
        return codec.decode(sequence.output_token_ids, context)
    except Exception as error:
        if is_shortage(error):
            raise
        _fail(sequence, error)
        return ""


def _fail(sequence: Sequence, error: Exception) -> None:
    kind = type(error).__name__
    # A library's words may quote the answer: this record has the error's kind and traceback alone. What a library
    # itself writes to standard error as it panics is not ours to keep back.
    logged = EngineError(kind).with_traceback(error.__traceback__)
    logger.error("the output of request %s cannot be decoded", sequence.request_id, exc_info=logged)
    sequence.fail(EngineError(f"the output cannot be decoded: {kind}"))
