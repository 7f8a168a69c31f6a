"""ReasoningBudget: closes a thinking that has grown as long as it may."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from helix_jobs.engine.reasoning import MAX_HEADER, Phase, place_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from helix_jobs.engine.reasoning import ReasoningForm
    from helix_jobs.engine.request import EncodedRequest


class ReasoningBudget:
    """A logits processor that allows only the next tokens of a closing once the budget is spent.

    What it does at a position follows from the tokens before it alone, so it is the same in target and draft, and after
    a rejected draft or a preemption.

    Args:
        budget: Most tokens of thinking, its markers excluded; 0 closes it at once.
        form: How the model marks its thinking.
    """

    keeps_argmax: Final = False

    def __init__(self, budget: int, form: ReasoningForm) -> None:
        self._budget = budget
        self._form = form

    def shape(self, logits: torch.Tensor, output_ids: Sequence[int]) -> None:
        """Leave one token, if the thinking must close; otherwise change nothing."""
        token_ids = closing_tokens(output_ids, self._form, self._budget)
        if not token_ids:
            return
        allowed = list(token_ids)
        # Where one token is left, its own score may be that of a token that nothing else allows.
        scores = logits[allowed] if len(allowed) > 1 else 0.0
        logits.fill_(float("-inf"))
        logits[allowed] = scores


def closing_tokens(output_ids: Sequence[int], form: ReasoningForm, budget: int) -> frozenset[int]:
    """The tokens of a closing of which one must come next; none while the budget is not spent, and in the answer.

    A closing that the model has begun by itself is completed, not begun anew. Behind a closing that only leads to the
    end, the model is free to write the rest of the header.
    """
    if len(output_ids) < budget:  # before the thinking is looked for, which takes longer the longer it is
        return frozenset()
    place = place_of(output_ids, form)
    thought = len(output_ids) - place.start
    if place.phase is not Phase.THINKING or thought < budget:
        return frozenset()
    first = form.closings[0][0]
    reach = max(map(len, form.closings)) + (MAX_HEADER if form.header_starts else 0)
    for begin in range(max(place.start, len(output_ids) - reach), len(output_ids)):
        if output_ids[begin] != first:
            continue
        written = tuple(output_ids[begin:])
        if any(written[: len(closing)] == closing for closing in form.closings):
            return frozenset()
        if found := {closing[len(written)] for closing in form.closings if closing[: len(written)] == written}:
            return frozenset(found)
    return frozenset({first})


def budget_of(request: EncodedRequest) -> tuple[ReasoningBudget, ...]:
    """The processor that keeps a request's budget, behind all others; none for a request without one."""
    if request.reasoning is None or request.max_reasoning_tokens is None:
        return ()
    return (ReasoningBudget(request.max_reasoning_tokens, request.reasoning),)
