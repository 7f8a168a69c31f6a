"""StateStep: the recurrent layers of one step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from helix_jobs.engine.recurrence.state_plan import StateLayout

if TYPE_CHECKING:
    from helix_jobs.engine.recurrence.recurrence import Recurrence
    from helix_jobs.engine.recurrence.state_cache import StateCache
    from helix_jobs.engine.recurrence.state_plan import StateGroup


class StateStep:
    """One step's recurrences, prepared for all layers.

    Args:
        layout: A planned step, on the device.
        cache: The cache that it was planned for.
    """

    def __init__(self, layout: object, cache: StateCache | None) -> None:
        assert isinstance(layout, StateLayout), "the step was planned without states"
        assert cache is not None, "a model with recurrent layers has a state cache"
        self._layout = layout
        self._cache = cache

    def advance(self, layer: int, recurrence: Recurrence, projected: torch.Tensor) -> torch.Tensor:
        """Read the states that the step begins with, compute its tokens, and keep the states that it should keep.

        Args:
            layer: Index among the recurrent layers.
            recurrence: The layer's.
            projected: ``[T, out_features]`` of the layer's first product.

        Returns:
            ``[T, in_features]`` for the layer's second product.
        """
        inputs, rest = recurrence.split(projected)
        results = [self._group(layer, recurrence, group, inputs) for group in self._layout.groups]
        if self._layout.drafted_rows is not None:
            assert self._layout.drafted_tokens is not None, "planned together"
            new = inputs.index_select(0, self._layout.drafted_tokens)
            self._cache.write_drafted(layer, self._layout.drafted_rows, new)
        together = results[0] if len(results) == 1 else torch.cat(results)
        return recurrence.finish(together.index_select(0, self._layout.output_rows), rest)

    def _group(self, layer: int, recurrence: Recurrence, group: StateGroup, inputs: torch.Tensor) -> torch.Tensor:
        """Compute one group; return its results token by token, ``[n * t, ...]``."""
        n, window, width = group.num_pieces, recurrence.shape.window, recurrence.shape.width
        windows, matrices = self._cache.read(layer, group.read_rows)
        material = [inputs.new_zeros((1, width)), windows]
        if group.replayed is not None:
            material.append(self._cache.layers[layer].drafted.index_select(0, group.replayed))
        material.append(inputs)
        # [n, window + t, width]
        given = torch.cat(material).index_select(0, group.sources[window]).view(n, -1, width)
        results, matrices = recurrence.advance(given, matrices, group.num_kept, group.padding)
        if group.keep_rows is not None:
            windows = given.narrow(1, group.num_kept, window)
            if group.keep_places is not None:
                windows = windows.index_select(0, group.keep_places)
                matrices = None if matrices is None else matrices.index_select(0, group.keep_places)
            self._cache.write(layer, group.keep_rows, windows, matrices)
        return results.flatten(0, 1)
