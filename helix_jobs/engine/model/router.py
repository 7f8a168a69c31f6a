"""Router: which experts compute a token, and how much each of them counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from helix_jobs.engine.model.expert_description import RouterDescription
    from helix_jobs.engine.model.norms import Norm
    from helix_jobs.engine.weights.router_linear import RouterLinear


@dataclass(frozen=True, slots=True)
class Routes:
    """The experts of packed tokens, on the host. Each token's stand in ascending order.

    Attributes:
        experts: ``[T, top_k]`` int64.
        weights: ``[T, top_k]`` float32, the factor of each expert's result.
    """

    experts: torch.Tensor
    weights: torch.Tensor


@dataclass(frozen=True, slots=True)
class Router:
    """Chooses experts on the host, whatever the device.

    Trade-off: the logits are downloaded once a layer. The host has to know the choice anyway, to start one product for
    each expert in use, and no device needs operators for sorting.

    Attributes:
        linear: From a token to one logit an expert.
        correction: ``[num_experts]`` float32 on the host, or None.
        rule: How logits become a choice.
        dtype: Dtype of the model, to which weights may be rounded.
        norm: Norm of what the router reads, or None.
        expert_scale: ``[num_experts]`` float32 on the host, the factor of each expert's weight; or None.
    """

    linear: RouterLinear
    correction: torch.Tensor | None
    rule: RouterDescription
    dtype: torch.dtype
    norm: Norm | None = None
    expert_scale: torch.Tensor | None = None

    def __call__(self, hidden: torch.Tensor) -> Routes:
        """Choose for packed tokens ``[T, hidden_size]``."""
        given = hidden if self.norm is None else self.norm(hidden)
        experts, weights = choose(self.linear(given).cpu().float(), self.correction, self.rule)
        if self.expert_scale is not None:
            weights = weights * self.expert_scale[experts]
        if self.rule.rounds_weights:
            weights = weights.to(self.dtype).float()
        experts, order = experts.sort(dim=1)
        return Routes(experts, weights.gather(1, order))


def choose(
    logits: torch.Tensor, correction: torch.Tensor | None, rule: RouterDescription
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose each token's experts.

    Args:
        logits: ``[T, num_experts]`` float32.
        correction: ``[num_experts]`` float32, or None.
        rule: How.

    Returns:
        Their indices ``[T, top_k]``, int64, and their weights ``[T, top_k]``, float32; in no particular order.
    """
    if rule.score == "selected":
        chosen = logits.topk(rule.top_k, dim=-1)
        return chosen.indices, chosen.values.softmax(dim=-1) * rule.scale
    if rule.score == "mixed":
        return _mixed(logits, rule)
    # In double, because torch computes the last elements of a tensor by another exponential function.
    scores = logits.softmax(dim=-1) if rule.score == "softmax" else torch.sigmoid(logits.double()).float()
    compared = logits if rule.chooses_by_logits else scores
    candidates = compared if correction is None else compared + correction
    if rule.num_groups > 1:
        candidates = candidates.masked_fill(~_in_kept_groups(candidates, rule), float("-inf"))
    experts = candidates.topk(rule.top_k, dim=-1).indices
    weights = scores.gather(1, experts)
    if rule.is_normalised:
        weights = weights / (weights.sum(dim=-1, keepdim=True) + rule.sum_offset).clamp(min=rule.least_sum)
    return experts, weights * rule.scale


def _mixed(logits: torch.Tensor, rule: RouterDescription) -> tuple[torch.Tensor, torch.Tensor]:
    """The best experts, one after another: each counts as the softmax says over what is left and near it."""
    left, chosen, weights = logits, [], []
    for _ in range(rule.top_k):
        # each: [T, 1]
        best, expert = left.max(dim=-1, keepdim=True)
        is_far = (best - logits) / logits.abs().clamp(min=best) > 2 * rule.jitter
        weights.append(left.masked_fill(is_far, float("-inf")).softmax(dim=-1).gather(1, expert))
        chosen.append(expert)
        left = left.scatter(1, expert, float("-inf"))
    return torch.cat(chosen, dim=1), torch.cat(weights, dim=1)


def _in_kept_groups(candidates: torch.Tensor, rule: RouterDescription) -> torch.Tensor:
    """Whether each expert stands in one of its token's best groups, ``[T, num_experts]``."""
    # [T, num_groups, experts of a group]
    groups = candidates.unflatten(1, (rule.num_groups, -1))
    # [T, num_groups]
    totals = groups.topk(rule.scored_in_group, dim=-1).values.sum(dim=-1)
    kept = torch.zeros_like(totals, dtype=torch.bool).scatter_(1, totals.topk(rule.kept_groups, dim=-1).indices, True)  # noqa: FBT003  (the value that is scattered)
    return kept.unsqueeze(-1).expand_as(groups).flatten(1)
