"""AltUp: several residual streams, of which each layer computes one and corrects the others (Gemma 3n)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from helix_jobs.engine.model.layer_inputs import LayerInput
    from helix_jobs.engine.model.norms import Norm
    from helix_jobs.engine.weights.linear import Linear
    from helix_jobs.engine.weights.router_linear import RouterLinear

# Least mean square of a stream that is scaled to the size of another.
_LEAST_SQUARE: Final = 1e-5
# The sum of two parts of about equal size gets the size of one.
_SUM_SCALE: Final = 2.0**-0.5


@dataclass(frozen=True, slots=True)
class Streams:
    """Makes the streams of the embedded token, and one vector of them behind the last layer.

    The first stream is the embedded token itself.

    Attributes:
        expanding: Makes each further stream of the embedded token.
        merging: Is applied to each further stream before the mean of all is taken.
    """

    expanding: tuple[Linear, ...]
    merging: tuple[Linear, ...]

    @property
    def count(self) -> int:
        """How many streams there are."""
        return 1 + len(self.expanding)

    def expand(self, hidden: torch.Tensor) -> torch.Tensor:
        """From embedded tokens ``[T, hidden_size]`` to streams ``[T, count, hidden_size]``, all of one size."""
        further = [_of_size(project(hidden), hidden) for project in self.expanding]
        return torch.stack((hidden, *further), dim=1)

    def merge(self, streams: torch.Tensor) -> torch.Tensor:
        """The mean of streams ``[T, count, hidden_size]``, each scaled to the size of the first."""
        first, *others = streams.unbind(dim=1)
        parts = [_of_size(project(one), first) for project, one in zip(self.merging, others, strict=True)]
        return torch.stack((first, *parts)).mean(dim=0)

    def linears(self) -> tuple[Linear, ...]:
        """Its matrix products."""
        return *self.expanding, *self.merging

    def with_linears(self, change: Callable[[Linear], Linear]) -> Streams:
        """The same with ``change`` applied to every linear layer."""
        return Streams(tuple(map(change, self.expanding)), tuple(map(change, self.merging)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Laurel:
    """A learned residual beside attention (LAuReL, Menghani et al. 2024, arXiv:2411.07501).

    Attributes:
        left: From the hidden size to a low rank.
        right: Back to the hidden size.
        norm: Norm of the result.
    """

    left: Linear
    right: Linear
    norm: Norm

    def add_to(self, residual: torch.Tensor, normal: torch.Tensor) -> torch.Tensor:
        """The residual with ``normal``, what attention read, worked in; each ``[T, hidden_size]``."""
        return (residual + (normal + self.norm(self.right(self.left(normal))))) * _SUM_SCALE


@dataclass(frozen=True, slots=True, kw_only=True)
class AltUp:
    """Alternating updates of residual streams (Baykal et al. 2023, arXiv:2301.13310): one layer's part.

    A layer predicts all streams as sums of them, computes the active one, and corrects each by a share of what that one
    was mispredicted by. The token says how much of each: its *modes*.

    Attributes:
        norm: Norm of what modes are read from.
        router: From that to a mode for each stream.
        prediction: From modes to the share of each stream in each.
        correction: From modes to each stream's share of the correction, less one.
        active: The stream that the layer computes.
        scale: ``[hidden_size]`` factor of the active stream where the layer's input is worked in; None for one.
        laurel: Beside attention.
    """

    norm: Norm
    router: RouterLinear
    prediction: RouterLinear
    correction: RouterLinear
    active: int
    scale: torch.Tensor | None
    laurel: Laurel

    def predict(self, streams: torch.Tensor) -> torch.Tensor:
        """The streams ``[T, count, hidden_size]`` as the layer begins with them."""
        count = streams.shape[1]
        # [T, stream to predict, stream, 1]
        shares = self.prediction(self._modes(streams[:, self.active])).unflatten(1, (count, count, 1))
        predicted = streams
        for index in range(count):
            predicted = predicted + shares[:, :, index] * streams[:, index : index + 1]
        return predicted

    def correct(self, predicted: torch.Tensor, computed: torch.Tensor) -> torch.Tensor:
        """The streams behind the layer, ``[T, count, hidden_size]``.

        Args:
            predicted: From ``predict``.
            computed: ``[T, hidden_size]``, what the layer made of the active one.
        """
        shares = self.correction(self._modes(computed)) + 1.0
        missed = computed - predicted[:, self.active]
        return predicted + missed.unsqueeze(1) * shares.unsqueeze(2)

    def finished(
        self,
        predicted: torch.Tensor,
        computed: torch.Tensor,
        layer_input: LayerInput | None,
        given: torch.Tensor | None,
    ) -> torch.Tensor:
        """The streams behind the layer: corrected, and with the layer's own input worked into all but the first.

        Args:
            predicted: See ``correct``.
            computed: See ``correct``.
            layer_input: Of the layer, or None.
            given: ``[T, width]`` that input, or None.
        """
        streams = self.correct(predicted, computed)
        if layer_input is None or given is None:
            return streams
        active = streams[:, self.active]
        added = layer_input.of(active if self.scale is None else active * self.scale, given)
        first, others = streams.split((1, streams.shape[1] - 1), dim=1)
        return torch.cat((first, others + added.unsqueeze(1)), dim=1)

    def _modes(self, hidden: torch.Tensor) -> torch.Tensor:
        """``[T, count]``."""
        routed = self.router(self.norm(hidden) * hidden.shape[-1] ** -1.0)
        # In double on a CPU, because torch computes the last elements of a tensor by another exponential function.
        exact = routed.double() if routed.device.type == "cpu" else routed.float()
        return torch.tanh(exact).to(hidden.dtype)

    def linears(self) -> tuple[Linear, ...]:
        """Its matrix products; those of modes are not among them: they keep their form."""
        return self.laurel.left, self.laurel.right

    def with_linears(self, change: Callable[[Linear], Linear]) -> AltUp:
        """The same with ``change`` applied to every linear layer."""
        return replace(
            self, laurel=replace(self.laurel, left=change(self.laurel.left), right=change(self.laurel.right))
        )

    def with_norms(self, change: Callable[[Norm], Norm]) -> AltUp:
        """The same with ``change`` applied to every norm."""
        return replace(self, norm=change(self.norm), laurel=replace(self.laurel, norm=change(self.laurel.norm)))


def _of_size(hidden: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """``hidden`` scaled to the root mean square of ``like``, each ``[T, hidden_size]``."""
    wanted = (like * like).mean(dim=-1, keepdim=True).sqrt()
    found = (hidden * hidden).mean(dim=-1, keepdim=True).clamp(min=_LEAST_SQUARE).sqrt()
    return hidden * wanted / found
