"""Reproducible products: a target whose answers do not depend on what is computed beside them, where it can be had."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import torch

from helix_jobs.engine.decoder.linear import DenseLinear
from helix_jobs.engine.decoder.row_tiles import ANY_ROWS, RowTiles, candidates, rounding_classes, slowdown
from helix_jobs.engine.devices import describe_device
from helix_jobs.engine.kept_file import KeptFile
from helix_jobs.engine.native.build import processor_features
from helix_jobs.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from helix_jobs.engine.model_loader import LoadedModels

logger = logging.getLogger(__name__)

# Independence is worth so much time to everybody; more has to be asked for.
ACCEPTED_SLOWDOWN: Final = 1.05
_GO_ON: Final = "go on without it"


@dataclass(frozen=True, slots=True)
class ShapeTrial:
    """What was found of the products of one shape.

    Attributes:
        tiles: Numbers of rows that round alike; None where there are none.
        slowdown: How many times as long they take, at worst.
    """

    tiles: RowTiles | None
    slowdown: float


def make_reproducible(
    models: LoadedModels, when: str, folder: Path, on_progress: Callable[[str], None] | None = None
) -> LoadedModels:
    """Let the target's products round alike in any number of rows; the result says whether its answers do.

    A trial finds out for each shape of product, once for this machine, which numbers of rows give each row the same
    bits. Compiled attention does so by itself; torch's does not.

    Args:
        models: Loaded; computing with compiled kernels where there are any.
        when: ``auto``: where it costs at most a twentieth; ``on``: at any price.
        folder: Keeps what the trials found.
        on_progress: Told in one line what is missing.

    Raises:
        ConfigurationError: ``on``, and it cannot be had; the message says why.
    """
    report = on_progress or logger.info
    reason = _obstacle(models, when)
    if reason is not None:
        if when == "on":
            raise ConfigurationError(f"--reproducible cannot be had here: {reason}")
        return models
    target = models.target
    target.decoder.pack()
    linears = [linear for linear in target.decoder.linears() if isinstance(linear, DenseLinear)]
    trials = _trials(models, linears, folder)
    if any(trial.tiles is None for trial in trials.values()):
        if when == "on":
            raise ConfigurationError(
                "--reproducible cannot be had here: this processor's products round by the place of a row, however "
                f"many there are; {_GO_ON}"
            )
        return models
    cost = max((trial.slowdown for trial in trials.values()), default=1.0)
    if when == "auto" and cost > ACCEPTED_SLOWDOWN:
        report(
            f"answers may depend on what runs beside them; --reproducible makes them independent, with products that "
            f"take up to {cost:.2f} times as long"
        )
        return models
    for linear in linears:
        linear.use_tiles(trials[linear.out_features, linear.in_features].tiles or ANY_ROWS)
    if cost > 1.0:
        report(f"products are computed in tiles of rows that round alike, and take up to {cost:.2f} times as long")
    # Small steps of int8 layers in one call round in other places than large ones.
    decoder = replace(target.decoder, small_steps=None)
    return replace(models, target=replace(target, decoder=decoder, is_reproducible=True))


def _obstacle(models: LoadedModels, when: str) -> str | None:
    """Why tiles alone would not help; None where they may."""
    target = models.target
    if models.device.type != "cpu":
        return f"it is for the CPU, and the device is {describe_device(models.device)}; {_GO_ON}"
    if target.decoder.native is None:
        return "without compiled kernels attention rounds by what is computed beside it; install a C++ compiler (g++)"
    if target.decoder.small_steps is not None and when == "auto":
        return "the small steps of an int8 target would take longer"
    return None


def _trials(models: LoadedModels, linears: list[DenseLinear], folder: Path) -> dict[tuple[int, int], ShapeTrial]:
    """One trial a shape, from the file if this machine was tried before."""
    decoder = models.target.decoder
    by_shape = {(linear.out_features, linear.in_features): linear for linear in linears}
    identity = {
        "device": describe_device(models.device),
        "processor": processor_features(),
        "dtype": str(decoder.dtype),
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "shapes": str(sorted(by_shape)),
    }
    file = KeptFile(folder, "products", identity)
    kept = _parse(file.read(), sorted(by_shape))
    if kept is not None:
        return kept
    trials = {shape: _try(linear, decoder.dtype, models.device) for shape, linear in by_shape.items()}
    file.write(
        [
            {"least": None, "most": None, "slowdown": one.slowdown}
            if one.tiles is None
            else {"least": one.tiles.least, "most": one.tiles.most, "slowdown": one.slowdown}
            for _, one in sorted(trials.items())
        ]
    )
    return trials


def _try(linear: DenseLinear, dtype: torch.dtype, device: torch.device) -> ShapeTrial:
    with torch.inference_mode():
        classes = rounding_classes(linear, linear.in_features, dtype, device)
        offered = [
            ShapeTrial(tiles, 1.0 if tiles == ANY_ROWS else slowdown(linear, tiles, linear.in_features, dtype, device))
            for tiles in candidates(classes)
        ]
    found = min(offered, key=lambda trial: trial.slowdown, default=ShapeTrial(None, 1.0))
    logger.debug("products %d x %d: classes %s, %s", linear.out_features, linear.in_features, classes, found)
    return found


def _parse(content: Any, shapes: list[tuple[int, int]]) -> dict[tuple[int, int], ShapeTrial] | None:  # noqa: ANN401  (JSON)
    """What the file holds; None where it is no such file."""
    if not isinstance(content, list) or len(content) != len(shapes):
        return None
    trials = {}
    for shape, row in zip(shapes, content, strict=True):
        try:
            least, most, slower = row["least"], row["most"], float(row["slowdown"])
        except (TypeError, KeyError, ValueError):
            return None
        is_sound = least is None or (isinstance(least, int) and (most is None or isinstance(most, int)))
        if not is_sound or (most is not None and most < 2):  # noqa: PLR2004  (one row alone is never multiplied)
            return None
        trials[shape] = ShapeTrial(None if least is None else RowTiles(least, most), slower)
    return trials
