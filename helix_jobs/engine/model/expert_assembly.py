"""From a description of experts and a layer's stored weights to ``Experts``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from helix_jobs.engine.model.activations import ACTIVATIONS, ClampedSwiglu
from helix_jobs.engine.model.experts import Experts, SwitchedFeedForward
from helix_jobs.engine.model.feed_forward import GatedFeedForward, PlainFeedForward
from helix_jobs.engine.model.norms import RmsNorm
from helix_jobs.engine.model.router import Router
from helix_jobs.engine.weights.router_linear import RouterLinear

if TYPE_CHECKING:
    from collections.abc import Callable

    from helix_jobs.engine.model.description import FeedForwardDescription
    from helix_jobs.engine.model.expert_description import ExpertsDescription, RouterDescription
    from helix_jobs.engine.model.feed_forward import FeedForward
    from helix_jobs.engine.model.placement import Placement
    from helix_jobs.engine.model.stored_parts import StoredParts


def build_experts(
    parts: StoredParts,
    place: Placement,
    description: ExpertsDescription,
    feed_forward: Callable[[FeedForwardDescription], FeedForward],
) -> Experts:
    """Take a layer's experts apart.

    Args:
        parts: The layer.
        place: Where they go.
        description: The experts.
        feed_forward: Builds the shared part.

    Raises:
        Float16OverflowError: See ``Placement``.
    """
    count = len(parts.tensor(description.router.weight))
    shared = None if description.shared is None else feed_forward(description.shared)
    if shared is not None and description.shared_gate is not None:
        weight = parts.tensor(f"{description.shared_gate.names[0]}.weight")
        shared = SwitchedFeedForward(shared, RouterLinear(place.take(weight)))
    return Experts(
        _router(parts, place, description.router),
        tuple(_expert(parts, description, index, count) for index in range(count)),
        shared,
    )


def _expert(parts: StoredParts, own: ExpertsDescription, index: int, count: int) -> FeedForward:
    if own.up is not None:
        inner = parts.rows_of((own.inner, own.up), index, count)
        return GatedFeedForward(
            inner, parts.rows_of((own.outer,), index, count, is_transposed=True), ACTIVATIONS[own.activation]
        )
    inner = parts.stacked(
        own.inner, index, has_bias=own.has_bias, is_transposed=own.is_transposed, is_interleaved=own.is_interleaved
    )
    outer = parts.stacked(own.outer, index, has_bias=own.has_bias, is_transposed=own.is_transposed)
    if own.clamp is not None:
        return PlainFeedForward(inner, outer, ClampedSwiglu(*own.clamp))
    made = GatedFeedForward if own.is_gated else PlainFeedForward
    return made(inner, outer, ACTIVATIONS[own.activation])


def _router(parts: StoredParts, place: Placement, rule: RouterDescription) -> Router:
    weight = parts.tensor(rule.weight)
    bias = None if rule.bias is None else parts.tensor(rule.bias)
    if rule.is_exact:
        weight, bias = weight.float(), None if bias is None else bias.float()
        linear = RouterLinear(place.move(weight.clone()), None if bias is None else place.move(bias.clone()))
    else:
        linear = RouterLinear(place.take(weight), None if bias is None else place.take(bias))
    correction = None if rule.correction is None else parts.tensor(rule.correction).float().reshape(-1).cpu().clone()
    norm = None
    if rule.norm is not None:
        norm = RmsNorm(place.move(parts.tensor(rule.norm).float() * rule.norm_scale), rule.norm_eps)
    factors = None if rule.expert_scale is None else parts.tensor(rule.expert_scale).float().cpu().clone()
    return Router(linear, correction, rule, place.dtype, norm, factors)
