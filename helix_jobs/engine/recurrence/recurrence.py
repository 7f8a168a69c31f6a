"""Recurrence: what a layer without attention does between tokens. StateShape: the state that it carries along."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    import torch

_FLOAT32_BYTES: Final = 4


@dataclass(frozen=True, slots=True)
class StateShape:
    """The state of one layer behind some token of a sequence.

    Attributes:
        window: Inputs right before the next token that its convolution still reads.
        width: Elements of a token's input.
        matrix: Shape of the matrix that the layer carries along in float32; empty where the window is the whole state.
    """

    window: int
    width: int
    matrix: tuple[int, ...] = ()

    def row_bytes(self, itemsize: int) -> int:
        """Bytes of one state; inputs take ``itemsize`` bytes an element."""
        return self.window * self.width * itemsize + (prod(self.matrix) * _FLOAT32_BYTES if self.matrix else 0)


class Recurrence(Protocol):
    """Stands between the two matrix products of a layer, in the place of attention."""

    @property
    def shape(self) -> StateShape:
        """The state that it carries along."""

    @property
    def is_independent(self) -> bool:
        """Whether a token's result depends on its own sequence alone, bit for bit. See ``AttentionBackend``."""

    def split(self, projected: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Divide what a layer's first product yields.

        Args:
            projected: ``[T, out_features]`` of the first product.

        Returns:
            The inputs that the state depends on, ``[T, width]``, and what only a token's own result depends on,
            ``[T, ...]``.
        """

    def advance(
        self, inputs: torch.Tensor, state: torch.Tensor | None, num_kept: int, padding: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Compute sequences side by side.

        Args:
            inputs: ``[n, window + t, width]``: the inputs before the first token, then those of ``t`` tokens.
            state: ``[n, *matrix]`` float32 matrices before the first token, or None without one.
            num_kept: The matrices behind this many tokens are returned; at most ``t``.
            padding: ``[n, t]`` True for tokens that must leave the matrix as it is; None if there are none. Their
                inputs are zero, and their results are not used.

        Returns:
            Results ``[n, t, ...]``, and the matrices behind the first ``num_kept`` tokens.
        """

    def finish(self, mixed: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
        """What the layer's second product reads, ``[T, in_features]``.

        Args:
            mixed: ``[T, ...]`` results of ``advance`` in packed order.
            rest: ``[T, ...]`` the second part of ``split``.
        """
