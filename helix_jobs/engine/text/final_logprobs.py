"""The log probabilities of a sequence that has ended, with the texts of their tokens."""

from __future__ import annotations

import bisect
import math
from array import array
from dataclasses import replace
from typing import TYPE_CHECKING

from helix_jobs.engine.text.final_text import answer_ids, context_of
from helix_jobs.token_logprobs import NO_TOKEN, TokenLogprobs

if TYPE_CHECKING:
    from helix_jobs.engine.request import GenerationResult
    from helix_jobs.engine.schedule.logprob_record import LogprobRecord
    from helix_jobs.engine.text.codec import TextCodec
    from helix_jobs.engine.text.final_text import EndedOutput


def with_logprobs(result: GenerationResult, sequence: EndedOutput, codec: TextCodec) -> GenerationResult:
    """The result with the log probabilities that its request asks for; an error's result as it is."""
    if result.error is not None:
        return result
    if sequence.logprobs is not None:
        if sequence.stopped_text is not None:
            sequence.logprobs.truncate(_num_shown(sequence, sequence.stopped_text, codec))
        record = sequence.logprobs
        made = _with_texts(record.num_alternatives, record.token_ids, record.logprobs, codec)
        result = replace(result, logprobs=made)
    if sequence.prompt_logprobs is not None:
        return replace(result, prompt_logprobs=_of_prompt(sequence, sequence.prompt_logprobs, codec))
    return result


def _num_shown(sequence: EndedOutput, shown: str, codec: TextCodec) -> int:
    """How many output tokens have a part in the text before a stop string."""
    answer, context = answer_ids(sequence), context_of(sequence.request, codec)
    return (
        sequence.num_output_tokens
        - len(answer)
        + bisect.bisect_left(
            range(len(answer)), len(shown), key=lambda count: len(codec.decode(answer[:count], context))
        )
    )


def _of_prompt(sequence: EndedOutput, record: LogprobRecord, codec: TextCodec) -> TokenLogprobs:
    """The record behind a row for the prompt's first token, which has no log probability."""
    missing = record.num_alternatives
    token_ids = array("i", [sequence.request.prompt_token_ids[0], *[NO_TOKEN] * missing])
    logprobs = array("f", [math.nan] * (1 + missing))
    return _with_texts(missing, token_ids + record.token_ids, logprobs + record.logprobs, codec)


def _with_texts(
    num_alternatives: int, token_ids: array[int], logprobs: array[float], codec: TextCodec
) -> TokenLogprobs:
    texts = {token_id: codec.token_text(token_id) for token_id in set(token_ids) if token_id != NO_TOKEN}
    return TokenLogprobs(num_alternatives, token_ids, logprobs, texts)
