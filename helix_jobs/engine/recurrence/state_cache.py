"""StateCache: the recurrent states of one model, as tensors."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import torch

from helix_jobs.engine.devices.row_writer import row_writer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from helix_jobs.engine.config import StateConfig
    from helix_jobs.engine.recurrence.recurrence import StateShape


def state_bytes(shapes: Sequence[StateShape], config: StateConfig, itemsize: int) -> int:
    """Bytes of a cache of states of these layers, its zero row included; inputs take ``itemsize`` bytes an element."""
    rows = (config.num_rows + 1) * sum(shape.row_bytes(itemsize) for shape in shapes)
    return rows + config.num_slots * config.ring * sum(shape.width for shape in shapes) * itemsize


class LayerStates:
    """The states of one layer.

    Attributes:
        windows: ``[num_rows + 1, window * width]`` inputs before the next token.
        matrices: ``[num_rows + 1, elements]`` float32, or None.
        drafted: ``[num_slots * ring, width]`` inputs of draft tokens.
    """

    def __init__(self, shape: StateShape, config: StateConfig, dtype: torch.dtype, device: torch.device) -> None:
        num_rows = config.num_rows + 1
        self.windows = torch.zeros((num_rows, shape.window * shape.width), dtype=dtype, device=device)
        self.matrices = (
            torch.zeros((num_rows, prod(shape.matrix)), dtype=torch.float32, device=device) if shape.matrix else None
        )
        self.drafted = torch.zeros((config.num_slots * config.ring, shape.width), dtype=dtype, device=device)


class StateCache:
    """The states of every recurrent layer: rows of states, and for each sequence a slot with inputs of draft tokens.

    A row is written whole and only then read. The *zero row* behind those that the pool hands out is never written: it
    is the state before the first token.

    Args:
        shapes: The state of each recurrent layer, in order.
        config: Numbers of rows and slots.
        dtype: Dtype of the inputs.
        device: Where the model computes.
    """

    def __init__(
        self, shapes: Sequence[StateShape], config: StateConfig, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.shapes = tuple(shapes)
        self.ring = config.ring
        self.zero_row = config.num_rows
        self.layers = tuple(LayerStates(shape, config, dtype, device) for shape in shapes)
        self._write_rows = row_writer(device.type)

    @property
    def num_bytes(self) -> int:
        """Bytes of all layers."""
        return sum(
            one.windows.nbytes + one.drafted.nbytes + (0 if one.matrices is None else one.matrices.nbytes)
            for one in self.layers
        )

    def read(self, layer: int, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """States of the chosen ``rows [n]``: windows ``[n * window, width]`` and matrices ``[n, *matrix]``."""
        own, shape = self.layers[layer], self.shapes[layer]
        windows = own.windows.index_select(0, rows).view(-1, shape.width)
        if own.matrices is None:
            return windows, None
        return windows, own.matrices.index_select(0, rows).view(-1, *shape.matrix)

    def write(self, layer: int, rows: torch.Tensor, windows: torch.Tensor, matrices: torch.Tensor | None) -> None:
        """Keep states.

        Args:
            layer: Index among the recurrent layers.
            rows: ``[n]`` rows, each at most once.
            windows: ``[n, window, width]``
            matrices: ``[n, *matrix]`` float32, or None.
        """
        own = self.layers[layer]
        self._write_rows(own.windows, rows, windows.reshape(len(rows), -1))
        if own.matrices is not None:
            assert matrices is not None, "a layer with matrices yields them"
            self._write_rows(own.matrices, rows, matrices.reshape(len(rows), -1))

    def write_drafted(self, layer: int, rows: torch.Tensor, inputs: torch.Tensor) -> None:
        """Keep the inputs ``[n, width]`` of draft tokens in the given ``rows [n]`` of the slots."""
        self._write_rows(self.layers[layer].drafted, rows, inputs)
