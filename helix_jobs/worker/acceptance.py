"""What becomes of an answer that its job's acceptance rule refuses, and how the next try differs.

All choices of a job must be accepted, since a job has one state; the reason names the choices that were refused. The
next try answers the whole request anew.
"""

from __future__ import annotations

import logging
import struct
from dataclasses import replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Final

from helix_jobs.acceptance.judge import Answer
from helix_jobs.acceptance.stored import own_schema, stored_rule
from helix_jobs.engine.request import FinishReason
from helix_jobs.errors import RequestError
from helix_jobs.worker.job_endings import Decision, Fail, GiveUp, Refuse, Succeed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from helix_jobs.acceptance.rule import AcceptanceRule
    from helix_jobs.engine.request import Request
    from helix_jobs.storage.records import ClaimedJob, ResultRow
    from helix_jobs.worker.answer_judge import AnswerJudge

logger = logging.getLogger(__name__)

# The temperature of a greedy request's later tries, which would otherwise give the refused answer again. Low, so that
# what the model is sure of stays as it is.
RETRY_TEMPERATURE: Final = 0.3
_MASK_64: Final = 2**64 - 1
# Choices that a reason names.
_NAMED: Final = 3


def seed_of_try(seed: int, tries: int) -> int:
    """The 64-bit seed of the answer after ``tries`` refused ones: the job's own for the first, fresh ones then.

    A pure function (BLAKE2b over seed and tries): a try that dies with its worker is the same try when it runs again.
    """
    if tries == 0:
        return seed
    message = struct.pack("<QQ", seed & _MASK_64, tries)
    return int.from_bytes(blake2b(message, digest_size=8, person=b"helix-try").digest(), "big")


def request_of_try(request: Request, tries: int) -> Request:
    """The request as it is answered after ``tries`` refused answers."""
    if tries == 0:
        return request
    sampling = request.sampling_params
    if sampling.is_greedy:
        sampling = replace(sampling, temperature=RETRY_TEMPERATURE)
    return replace(request, seed=seed_of_try(request.seed, tries), sampling_params=sampling)


def judged(decision: Decision, claim: ClaimedJob, judge: AnswerJudge) -> Decision:
    """The decision after the job's acceptance rule has looked at its answers.

    Raises:
        ExhaustedError: The system cannot start the process that judges; no job is to blame.
    """
    if not isinstance(decision, Succeed):
        return decision
    try:
        rule = stored_rule(claim.request)
        if rule is None:
            return decision
        schema = own_schema(claim.request)
        reasons = [judge.judge(rule, _as_answer(row), schema) for row in decision.answers]
    except RequestError as error:
        return Fail(error.code, str(error))
    return after_judging(decision, reasons, rule, claim.tries)


def after_judging(decision: Succeed, reasons: Sequence[str | None], rule: AcceptanceRule, tries: int) -> Decision:
    """Decide what becomes of a job with these answers.

    Args:
        decision: What would be written of the answers.
        reasons: For each answer, why the rule refuses it; None if it accepts it.
        rule: The rule.
        tries: The job's answers that were refused before.
    """
    refused = [(number, reason) for number, reason in enumerate(reasons) if reason is not None]
    if not refused:
        return decision
    if tries + 1 < rule.max_tries:
        return Refuse()
    return GiveUp(decision.answers, decision.run, _message(refused, len(reasons), tries + 1))


def _as_answer(row: ResultRow) -> Answer:
    return Answer(
        text=row.output_text,
        tokens=row.completion_tokens - (row.reasoning_tokens or 0),
        is_cut=row.finish_reason == FinishReason.LENGTH,
    )


def _message(refused: Sequence[tuple[int, str]], choices: int, tries: int) -> str:
    if choices == 1:
        why = refused[0][1]
    else:
        named = "; ".join(f"choice {number}: {reason}" for number, reason in refused[:_NAMED])
        why = named + (f"; and {len(refused) - _NAMED} more" if len(refused) > _NAMED else "")
    times = "its only answer was refused" if tries == 1 else f"{tries} answers were refused, the last of them is kept"
    return f"{times}: {why}"
