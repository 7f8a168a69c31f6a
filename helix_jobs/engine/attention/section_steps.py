"""SectionSteps: one step of attention over layers whose keys and values lie in different sections of the cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from helix_jobs.engine.attention.backend import AttentionBackend, AttentionStep
    from helix_jobs.engine.attention.kv_cache import PagedKVCache
    from helix_jobs.engine.attention.step_layout import StepLayout
    from helix_jobs.engine.cache_sections import LayerSections


class SectionSteps:
    """A step of the backend for each section; each layer takes its own section's (satisfies ``AttentionStep``)."""

    def __init__(self, steps: Sequence[AttentionStep], sections: LayerSections) -> None:
        self._steps = [steps[section] for section in sections.layers]

    def attend(self, layer: int, qkv: torch.Tensor) -> torch.Tensor:
        """See ``AttentionStep``."""
        return self._steps[layer].attend(layer, qkv)


def begin_step(backend: AttentionBackend, layout: StepLayout, cache: PagedKVCache) -> AttentionStep:
    """Prepare a step for all layers; see ``AttentionBackend.begin``."""
    first = backend.begin(layout, cache)
    if not layout.further:
        return first
    return SectionSteps([first, *(backend.begin(one, cache) for one in layout.further)], cache.sections)
