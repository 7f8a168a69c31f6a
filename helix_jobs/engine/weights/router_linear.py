"""RouterLinear: a small product that decides which experts compute a token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from torch.nn import functional

from helix_jobs.engine.weights.row_tiles import RowTiles

if TYPE_CHECKING:
    import torch

# Rows of one product on a CPU.
_ROWS: Final = 16


class RouterLinear:
    """``x @ weight.T + bias`` in the weight's own dtype, never in another form of the weight.

    A rounding error here can change which experts compute a token. So the weight is not quantised with the rest of the
    model, and a CPU always multiplies the same number of rows: a row's bits do not depend on the rows beside it.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        # [out_features, in_features]
        self._weight = weight
        # [out_features]
        self._bias = bias
        self._tiles = RowTiles(least=_ROWS, most=_ROWS) if weight.device.type == "cpu" else None

    @property
    def out_features(self) -> int:
        """Outputs of a row."""
        return self._weight.shape[0]

    @property
    def nbytes(self) -> int:
        """Memory of weight and bias."""
        return self._weight.nbytes + (0 if self._bias is None else self._bias.nbytes)

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """The product of ``[T, in_features]``: ``[T, out_features]`` in the weight's dtype."""
        hidden = hidden.to(self._weight.dtype)
        if self._tiles is None:
            return self._product(hidden)
        return self._tiles.apply(self._product, hidden)

    def _product(self, hidden: torch.Tensor) -> torch.Tensor:
        return functional.linear(hidden, self._weight, self._bias)
