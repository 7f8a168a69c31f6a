"""Trials of matrix products: which numbers of rows round alike on this machine, and the cost of making all do so."""

from __future__ import annotations

import logging
import time
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import torch

from helix_jobs.engine.devices.devices import describe_device
from helix_jobs.engine.devices.kept_file import KeptFile
from helix_jobs.engine.kernels.cpu.build import processor_features
from helix_jobs.engine.kernels.cpu.native_decoder import native_of
from helix_jobs.engine.kernels.cpu.tiled_linear import TiledLinear
from helix_jobs.engine.weights.linear import DenseLinear
from helix_jobs.engine.weights.rounding import TRIED_ROWS, cancelling_operands, rounding_classes
from helix_jobs.engine.weights.row_tiles import ANY_ROWS, RowTiles, candidates

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from helix_jobs.engine.model.decoder import Decoder
    from helix_jobs.engine.weights.linear import Linear

    Shape = tuple[int, int]  # outputs, inputs

logger = logging.getLogger(__name__)

# Mixes of passes that a way is timed by: how many passes of how many rows. Trade-off: one pass of a thousand rows may
# take longer than before if ten of thirty-two take less; a bulk run consists of both.
MIXES: Final = {
    "one sequence": {2: 1},
    "a few": {8: 1},
    "a batch and a prompt": {32: 10, 1024: 1},
    "drafts and a prompt": {128: 10, 1024: 1},
}
TIMED_ROWS: Final = tuple(sorted({rows for mix in MIXES.values() for rows in mix}))
_TIMED_RUNS: Final = 5
# A larger output head is tried with only this many outputs: its weights would fill the memory beside the model's.
_MOST_OUTPUTS: Final = 1 << 16
# Most rows of logits in a step: of a prompt only the last token's logits are computed.
_LOGIT_ROWS: Final = 128
# A product that takes longer is timed once.
_LONG_SECONDS: Final = 0.2
# Most multiplications in one product of a trial: a large output head sees few rows.
_MOST_PRODUCTS: Final = 1 << 36


@dataclass(frozen=True, slots=True)
class ShapeTrial:
    """A way to compute products of one shape so that all numbers of rows round alike.

    Attributes:
        tiles: Numbers of rows that agree; None if there are none, or if matrix tiles are used.
        has_matrix_tiles: Whether ``TiledLinear`` computes them.
        seconds: Time of this way at ``TIMED_ROWS``; zeros if nothing had to be timed.
        plain_seconds: Time of the unchanged product.
    """

    tiles: RowTiles | None
    has_matrix_tiles: bool = False
    seconds: tuple[float, ...] = (0.0,) * len(TIMED_ROWS)
    plain_seconds: tuple[float, ...] = (0.0,) * len(TIMED_ROWS)

    @property
    def changes_nothing(self) -> bool:
        """Whether the product stays unchanged."""
        return self.tiles == ANY_ROWS and not self.has_matrix_tiles

    @property
    def is_possible(self) -> bool:
        """Whether there is a way at all."""
        return self.has_matrix_tiles or self.tiles is not None

    def to_dict(self) -> dict[str, object]:
        """The trial, ready for JSON."""
        return {
            "least": None if self.tiles is None else self.tiles.least,
            "most": None if self.tiles is None else self.tiles.most,
            "matrix": self.has_matrix_tiles,
            "seconds": list(self.seconds),
            "plain": list(self.plain_seconds),
        }

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> ShapeTrial:
        """The inverse.

        Raises:
            TypeError, KeyError, ValueError: The dictionary is not from ``to_dict``.
        """
        least, most, matrix = row["least"], row["most"], row["matrix"]
        seconds, plain = (tuple(float(one) for one in row[name]) for name in ("seconds", "plain"))
        if not isinstance(matrix, bool) or not len(seconds) == len(plain) == len(TIMED_ROWS):
            raise ValueError(row)
        if least is None:
            return cls(None, matrix, seconds, plain)
        if not isinstance(least, int) or not (most is None or (isinstance(most, int) and most > 1)):
            raise ValueError(row)
        return cls(RowTiles(least, most), matrix, seconds, plain)


def slowdown(trials: Mapping[Shape, ShapeTrial], counts: Mapping[Shape, int]) -> float:
    """Factor by which a model's products get slower, in the worst of ``MIXES``; at least 1.0.

    Args:
        trials: Trials by shape.
        counts: How many products of each shape a pass has.
    """
    if all(trial.changes_nothing for trial in trials.values()):
        return 1.0

    def total(mix: Mapping[int, int], seconds: Callable[[ShapeTrial], tuple[float, ...]]) -> float:
        return sum(
            counts[shape] * mix.get(rows, 0) * each
            for shape, trial in trials.items()
            for rows, each in zip(TIMED_ROWS, seconds(trial), strict=True)
        )

    return max(
        1.0, *(total(mix, lambda t: t.seconds) / total(mix, lambda t: t.plain_seconds) for mix in MIXES.values())
    )


def try_products(decoder: Decoder, folder: Path, report: Callable[[str], None]) -> dict[Shape, ShapeTrial]:
    """One trial for each shape of the decoder's dense products, from the file if this machine was tried before.

    The model's weights are not read: the trials use their own, of the same shapes.

    Args:
        decoder: The decoder, not packed yet.
        folder: Keeps the results.
        report: Receives a line saying that this takes a while.
    """
    linears = [linear for linear in decoder.linears() if isinstance(linear, DenseLinear)]
    if not linears:  # int8 sums are exact
        return {}
    has_bias = {shape_of(linear): linear.bias is not None for linear in linears}
    shapes = sorted(has_bias)
    native = native_of(decoder)
    identity = {
        "device": describe_device(decoder.device),
        "processor": processor_features(),
        "dtype": str(decoder.dtype),
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "tiles": str(native is not None and native.has_tiles),
        "shapes": str(shapes),
    }
    file = KeptFile(folder, "products", identity)
    kept = _parse(file.read(), shapes)
    if kept is not None:
        return kept
    report("trying how this machine's matrix products round, once for these models")
    with torch.inference_mode():
        ways = {shape: _try(shape, decoder, has_bias=has_bias[shape]) for shape in shapes}
        trials = {shape: found[0] for shape, found in ways.items()}
        if not all(trial.changes_nothing for trial in trials.values()):
            trials = {shape: _fastest(shape, found, decoder, has_bias=has_bias[shape]) for shape, found in ways.items()}
    file.write([trials[shape].to_dict() for shape in shapes])
    return trials


def count_products(decoder: Decoder) -> Counter[Shape]:
    """How many products of each shape a pass has."""
    return Counter(shape_of(linear) for linear in decoder.linears())


def shape_of(linear: Linear) -> Shape:
    """Outputs and inputs."""
    return linear.out_features, linear.in_features


def _try(shape: Shape, decoder: Decoder, *, has_bias: bool) -> tuple[ShapeTrial, ...]:
    """Every way to compute products of one shape so that all numbers of rows round alike; not timed."""
    probe = _Probe(shape, decoder, has_bias=has_bias)
    counts = [count for count in TRIED_ROWS if count * shape[0] * shape[1] <= _MOST_PRODUCTS]
    classes = rounding_classes(_product_and_sum(probe.packed), probe.distinct, counts)
    ways = [ShapeTrial(tiles) for tiles in candidates(classes, counts)]
    if ways != [ShapeTrial(ANY_ROWS)]:
        tiled = probe.tiled()
        # Matrix tiles are never far from the library's speed, while row tiles can take three times as long.
        if tiled is not None and set(rounding_classes(_product_and_sum(tiled), probe.distinct, counts)) == {0}:
            ways = [ShapeTrial(None, has_matrix_tiles=True)]
    logger.debug("products %d x %d: of %s rows the classes %s", *shape, counts, classes)
    return tuple(ways) or (ShapeTrial(None),)


class _Probe:
    """A layer of one shape with weights of its own."""

    def __init__(self, shape: Shape, decoder: Decoder, *, has_bias: bool) -> None:
        num_outputs = min(shape[0], _MOST_OUTPUTS)
        self._share = num_outputs / shape[0]
        self._is_head = shape == shape_of(decoder.head)
        weight, distinct = cancelling_operands(num_outputs, shape[1], decoder.dtype)
        weight = weight.to(decoder.device)
        bias = weight.new_zeros(num_outputs) if has_bias else None
        self.distinct = distinct.to(decoder.device)
        self.packed = DenseLinear(weight, bias)
        self.packed.pack()
        self._dense = DenseLinear(weight, bias)
        self._decoder = decoder

    def tiled(self) -> TiledLinear | None:
        """The layer in matrix tiles; None if the processor has none."""
        native = native_of(self._decoder)
        if native is None or not TiledLinear.serves(self._dense.in_features, self._decoder.dtype, native):
            return None
        return TiledLinear(self._dense, native)

    def timed(self, way: ShapeTrial) -> ShapeTrial:
        """The way, with its time and that of the unchanged product."""
        product: Callable[[torch.Tensor], torch.Tensor] = self.packed
        if way.has_matrix_tiles:
            tiled = self.tiled()
            assert tiled is not None, "it was tried"
            product = tiled
        elif way.tiles is not None and not way.changes_nothing:
            product = partial(way.tiles.apply, self.packed)
        rows = self.distinct.repeat(-(-max(TIMED_ROWS) // len(self.distinct)), 1)
        pairs = []
        for count in TIMED_ROWS:
            part = rows[: min(count, _LOGIT_ROWS) if self._is_head else count]
            pairs.append([seconds / self._share for seconds in _least_seconds(product, self.packed, part)])
        return ShapeTrial(way.tiles, way.has_matrix_tiles, *(tuple(side) for side in zip(*pairs, strict=True)))


def _fastest(shape: Shape, ways: Sequence[ShapeTrial], decoder: Decoder, *, has_bias: bool) -> ShapeTrial:
    if not ways[0].is_possible:
        return ways[0]
    probe = _Probe(shape, decoder, has_bias=has_bias)
    found = min((probe.timed(way) for way in ways), key=lambda trial: slowdown({shape: trial}, {shape: 1}))
    logger.debug("products %d x %d: %s", *shape, found)
    return found


def _product_and_sum(linear: Linear) -> Callable[[torch.Tensor], torch.Tensor]:
    """Both operations of a layer, side by side: they may use different kernels."""

    def both(rows: torch.Tensor) -> torch.Tensor:
        return torch.cat((linear(rows), linear.add_to(rows.new_zeros((len(rows), linear.out_features)), rows)), dim=1)

    return both


def _least_seconds(
    product: Callable[[torch.Tensor], torch.Tensor], plain: Callable[[torch.Tensor], torch.Tensor], rows: torch.Tensor
) -> tuple[float, float]:
    """The shortest time of each over several alternating runs: other work on the machine only lengthens a run."""
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(_TIMED_RUNS):
        for call, times in ((plain, theirs), (product, ours)):
            started = time.perf_counter()
            call(rows)
            times.append(time.perf_counter() - started)
        if theirs[-1] > _LONG_SECONDS:
            break
    return min(ours), min(theirs)


def _parse(content: Any, shapes: Sequence[Shape]) -> dict[Shape, ShapeTrial] | None:  # noqa: ANN401  (JSON)
    """The file's trials; None if it is not such a file."""
    if not isinstance(content, list) or len(content) != len(shapes):
        return None
    try:
        return {shape: ShapeTrial.from_dict(row) for shape, row in zip(shapes, content, strict=True)}
    except (TypeError, KeyError, ValueError):
        return None
