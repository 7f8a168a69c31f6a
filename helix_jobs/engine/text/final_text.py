"""An output's text: cut at stop strings, and decoded at the end. A request fails if its output cannot be decoded."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from helix_jobs.engine.matcher import GrammarError
from helix_jobs.engine.request import FinishReason
from helix_jobs.errors import EngineError
from helix_jobs.exhaustion import is_shortage

if TYPE_CHECKING:
    from helix_jobs.engine.schedule.sequence import Sequence
    from helix_jobs.engine.text.codec import TextCodec
    from helix_jobs.engine.text.stop_strings import StopStringWatch

logger = logging.getLogger(__name__)


def apply_stop_strings(sequence: Sequence, watch: StopStringWatch, num_new: int) -> int:
    """End the sequence at a stop string, if there is one; return the number of new tokens dropped.

    Raises:
        MemoryError, OSError, RuntimeError: The machine is short of a resource; the request is not at fault.
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
    """Decode an output that has ended. If that fails, fail the request and return an empty text.

    Raises:
        MemoryError, OSError, RuntimeError: As in `apply_stop_strings`.
    """
    if sequence.stopped_text is not None:
        return sequence.stopped_text
    try:
        request = sequence.request
        # A chat answer is a text of its own; the output of a plain prompt continues the prompt's text.
        context = None if request.is_chat else codec.context(request.prompt_token_ids)
        return codec.decode(sequence.output_token_ids, context)
    except Exception as error:
        if is_shortage(error):
            raise
        _fail(sequence, error)
        return ""


def is_valid(sequence: Sequence) -> bool | None:
    """Whether an output that has ended has the form it was asked for; None if it was asked for none."""
    grammar = sequence.grammar
    if grammar is None:
        return None
    if sequence.error is not None:
        return False
    if sequence.stopped_text is None:
        ids = sequence.output_token_ids
        return grammar.is_accepting(ids[:-1] if ids and ids[-1] in sequence.kept_stop_ids else ids)
    # A stop string has cut the text, perhaps within a token.
    try:
        return grammar.grammar.accepts(sequence.stopped_text)
    except GrammarError:
        return False


def _fail(sequence: Sequence, error: Exception) -> None:
    kind = type(error).__name__
    # Log only the error's type and traceback, as a library's message may quote the answer. A panic's own output on
    # standard error cannot be held back.
    logged = EngineError(kind).with_traceback(error.__traceback__)
    logger.error("the output of request %s cannot be decoded", sequence.request_id, exc_info=logged)
    sequence.fail(EngineError(f"the output cannot be decoded: {kind}"))
