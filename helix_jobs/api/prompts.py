"""Several prompts in one request to ``/v1/completions``: each is a job of its own, and one answer has all choices."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.api.problems import Problem
from helix_jobs.intake.forms import COMPLETION_ENDPOINT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from helix_jobs.api.interactive import Call

MAX_PROMPTS: Final = 128


def each_prompt(call: Call, *, is_streamed: bool) -> list[Call]:
    """The request once for each of its prompts: texts, or lists of token ids.

    Args:
        call: The request.
        is_streamed: Whether the answer is sent while it grows.

    Raises:
        Problem: There are too many prompts, or their answers were to be streamed.
    """
    prompts = call.body.get("prompt")
    if call.endpoint != COMPLETION_ENDPOINT or not isinstance(prompts, list) or len(prompts) < 2:  # noqa: PLR2004  (several)
        return [call]
    if not all(isinstance(prompt, str | list) for prompt in prompts):
        return [call]  # the token ids of one prompt
    if is_streamed:
        raise _refused("the answers of several prompts are not streamed; send one prompt, or leave stream out")
    if len(prompts) > MAX_PROMPTS:
        raise _refused(f"there are {len(prompts)} prompts; send at most {MAX_PROMPTS}, or a batch")
    return [
        replace(
            call,
            body={**call.body, "prompt": prompt},
            size=call.size // len(prompts),
            number=number,
            count=len(prompts),
        )
        for number, prompt in enumerate(prompts)
    ]


def one_answer(bodies: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The answers of several prompts as one, in the order of the prompts.

    Args:
        bodies: Each prompt's answer. All have the same number of choices.
    """
    first = bodies[0]
    if len(bodies) == 1:
        return first
    choices = [choice for body in bodies for choice in body["choices"]]
    return {
        **first,
        "choices": [{**choice, "index": index} for index, choice in enumerate(choices)],
        "usage": _sum_of([body["usage"] for body in bodies]),
    }


def _sum_of(usages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The counts of several answers, added up; each detail stands where at least one answer has it."""
    names = dict.fromkeys(name for usage in usages for name in usage)
    found = {name: [usage[name] for usage in usages if name in usage] for name in names}
    return {name: sum(given) if isinstance(given[0], int) else _sum_of(given) for name, given in found.items()}


def _refused(message: str) -> Problem:
    return Problem(400, f"prompt: {message}", param="prompt", code="invalid_request")
