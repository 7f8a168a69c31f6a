"""From the description of residual streams and a loaded module to ``AltUp`` and ``Streams``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from helix_jobs.engine.model.altup import AltUp, Laurel, Streams

if TYPE_CHECKING:
    from helix_jobs.engine.model.altup_description import AltUpDescription, StreamsDescription
    from helix_jobs.engine.model.stored_parts import StoredParts


def build_streams(outer: StoredParts, own: StreamsDescription) -> Streams:
    """What makes the streams, and one vector of them; ``outer`` is the base model."""
    return Streams(tuple(map(outer.linear, own.expanding)), tuple(map(outer.linear, own.merging)))


def build_altup(parts: StoredParts, own: AltUpDescription, hidden_size: int) -> AltUp:
    """A layer's part."""
    return AltUp(
        norm=parts.norm(own.norm, hidden_size),
        router=parts.router_linear(own.router),
        prediction=parts.router_linear(own.prediction),
        correction=parts.router_linear(own.correction),
        active=own.active,
        scale=None if own.scale is None else parts.placed(own.scale),
        laurel=Laurel(
            left=parts.linear(own.laurel_left),
            right=parts.linear(own.laurel_right),
            norm=parts.norm(own.laurel_norm, hidden_size),
        ),
    )
