"""Experts written plainly, token by token in float64: which ones a token uses, and what they yield together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from helix_jobs.engine.model.expert_description import RouterDescription
    from helix_jobs.engine.model.experts import Experts


def plain_experts(
    own: Experts, weight: torch.Tensor, given: torch.Tensor, compute: Callable[[Any, torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """What experts yield for ``[n, hidden_size]``.

    Args:
        own: Its parts are read; none of its methods is called.
        weight: ``[num_experts, hidden_size]`` of its router.
        given: The tokens.
        compute: What a feed-forward yields for tokens.
    """
    correction = None if own.router.correction is None else own.router.correction.double()
    rows = []
    for token in given:
        chosen = plain_routes(weight.double() @ token, correction, own.router.rule)
        row = sum(compute(own.experts[expert], token[None])[0] * share for expert, share in chosen.items())
        rows.append(row)
    found = torch.stack([row for row in rows if isinstance(row, torch.Tensor)])
    return found if own.shared is None else found + compute(own.shared, given)


def plain_routes(
    logits: torch.Tensor, correction: torch.Tensor | None, rule: RouterDescription
) -> dict[int, torch.Tensor]:
    """The experts of one token, and how much each counts."""
    if rule.score == "mixed":
        return _mixed(logits, rule)
    scores = torch.softmax(logits, dim=0) if rule.score == "softmax" else torch.sigmoid(logits)
    compared = logits if rule.chooses_by_logits or rule.score == "selected" else scores
    if correction is not None and rule.score != "selected":
        compared = compared + correction
    places = list(range(len(logits)))
    if rule.num_groups > 1:
        size = len(logits) // rule.num_groups
        groups = [places[first : first + size] for first in range(0, len(places), size)]
        best = [float(compared[group].sort(descending=True).values[: rule.scored_in_group].sum()) for group in groups]
        kept = sorted(range(len(groups)), key=lambda group: -best[group])[: rule.kept_groups]
        places = [place for group in kept for place in groups[group]]
    chosen = sorted(places, key=lambda place: -float(compared[place]))[: rule.top_k]
    weights = torch.softmax(logits[chosen], dim=0) if rule.score == "selected" else scores[chosen]
    if rule.is_normalised and rule.score != "selected":
        weights = weights / (weights.sum() + rule.sum_offset)
    return {expert: weights[place] * rule.scale for place, expert in enumerate(chosen)}


def _mixed(logits: torch.Tensor, rule: RouterDescription) -> dict[int, torch.Tensor]:
    found: dict[int, torch.Tensor] = {}
    for _ in range(rule.top_k):
        left = [place for place in range(len(logits)) if place not in found]
        expert = max(left, key=lambda place: float(logits[place]))
        best = logits[expert]
        near = [place for place in left if (best - logits[place]) / max(abs(logits[place]), best) <= 2 * rule.jitter]
        found[expert] = torch.softmax(logits[near], dim=0)[near.index(expert)]
    return found
