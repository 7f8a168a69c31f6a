"""Reproducible models: a target and a draft whose results do not depend on the rest of the batch, where possible."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from helix_jobs.engine.devices.devices import describe_device
from helix_jobs.engine.kernels.cpu.attention import CompiledAttention
from helix_jobs.engine.kernels.cpu.native_decoder import native_of
from helix_jobs.engine.kernels.cpu.tiled_linear import TiledLinear
from helix_jobs.engine.loading.product_trials import count_products, shape_of, slowdown, try_products
from helix_jobs.engine.weights.linear import DenseLinear
from helix_jobs.engine.weights.row_tiles import ANY_ROWS
from helix_jobs.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from helix_jobs.engine.loaded_models import LoadedModel, LoadedModels
    from helix_jobs.engine.loading.product_trials import Shape, ShapeTrial
    from helix_jobs.engine.model.decoder import Decoder
    from helix_jobs.engine.weights.linear import Linear

logger = logging.getLogger(__name__)

# ``auto`` accepts up to this slowdown; the user must ask for more.
ACCEPTED_SLOWDOWN: Final = 1.05
_GO_ON: Final = "go on without it"


def make_reproducible(
    models: LoadedModels, when: str, folder: Path, on_progress: Callable[[str], None] | None = None
) -> LoadedModels:
    """Let products of the target round alike in any number of rows, and note whether its answers are reproducible.

    For each shape of product a trial, run once on this machine, finds which numbers of rows give each row the same
    bits. Where they differ, products are computed in the processor's matrix tiles by our own code, or in numbers of
    rows that agree, whichever is faster. Compiled attention is reproducible as it is; torch's cannot be made so.

    Args:
        models: Loaded models, not packed yet, with compiled kernels where there are any.
        when: ``auto``: if it costs at most a twentieth of the time; ``on``: at any cost.
        folder: Keeps the trials' results.
        on_progress: Receives one line that says what is missing.

    Raises:
        ConfigurationError: ``when`` is ``on`` and it is not possible; the message says why.
    """
    if models.target.decoder.small_steps is not None and when == "auto":
        return models  # the small steps of an int8 target would take longer
    target = _made_reproducible(models.target, when, folder, on_progress or logger.info)
    return replace(models, target=target) if target.is_reproducible else models


def make_draft_reproducible(
    models: LoadedModels, when: str, folder: Path, on_progress: Callable[[str], None] | None = None
) -> LoadedModels:
    """Like ``make_reproducible``, for a draft of fixed depth: sampled answers depend on its numbers, too.

    The way a sampled line uses its random numbers depends on the drafted tokens and their probabilities. With an
    adaptive depth that does not matter: a line with its own seed is not drafted for, and other lines promise nothing.

    Trade-off: an int8 draft has to give up its compiled call for small steps, which rounds in other places than the
    layers one by one. It then takes nearly twice as long for a token or two. That is more than a twentieth, so the user
    must ask for it, as with an int8 target; greedy answers are the same without it.

    Args:
        models: From ``make_reproducible``; unchanged if their target is not reproducible.
        when: As in ``make_reproducible``.
        folder: As in ``make_reproducible``.
        on_progress: As in ``make_reproducible``.

    Raises:
        ConfigurationError: As in ``make_reproducible``.
    """
    report = on_progress or logger.info
    if models.draft is None or not models.target.is_reproducible:
        return models
    if models.draft.decoder.small_steps is not None and when == "auto":
        report(
            "sampled answers of a fixed depth may depend on what runs beside them; --reproducible makes them "
            "independent, with a draft that takes up to twice as long in small steps"
        )
        return models
    return replace(models, draft=_made_reproducible(models.draft, when, folder, report))


def _made_reproducible(model: LoadedModel, when: str, folder: Path, report: Callable[[str], None]) -> LoadedModel:
    """The model, with its products changed if that makes it reproducible."""
    reason = _obstacle(model.decoder)
    if reason is not None:
        if when == "on":
            raise ConfigurationError(f"--reproducible cannot be had here: {reason}")
        return model
    trials = try_products(model.decoder, folder, report)
    if not all(trial.is_possible for trial in trials.values()):
        if when == "on":
            raise ConfigurationError(
                "--reproducible cannot be had here: this processor's products round by the place of a row, however "
                f"many there are; {_GO_ON}"
            )
        return model
    cost = slowdown(trials, count_products(model.decoder))
    if when == "auto" and cost > ACCEPTED_SLOWDOWN:
        report(
            f"answers may depend on what runs beside them; --reproducible makes them independent, with products that "
            f"take up to {cost:.2f} times as long"
        )
        return model
    if cost > 1.0:
        report(f"products round alike in any number of rows, and take up to {cost:.2f} times as long")
    return replace(model, decoder=_changed(model.decoder, trials), is_reproducible=True)


def _changed(decoder: Decoder, trials: Mapping[Shape, ShapeTrial]) -> Decoder:
    """The decoder with its dense layers computed as the trials say."""
    native = native_of(decoder)

    def change(linear: Linear) -> Linear:
        if not isinstance(linear, DenseLinear):
            return linear
        trial = trials[shape_of(linear)]
        if trial.has_matrix_tiles:
            assert native is not None, "compiled kernels multiply in matrix tiles"
            return TiledLinear(linear, native)
        linear.use_tiles(trial.tiles or ANY_ROWS)
        return linear

    # Small steps, which run all int8 layers in one call, round in other places than large ones.
    return replace(decoder.with_linears(change), small_steps=None)


def _obstacle(decoder: Decoder) -> str | None:
    """Why the decoder cannot be made reproducible; None if it may be possible."""
    if decoder.device.type != "cpu":
        return f"it is for the CPU, and the device is {describe_device(decoder.device)}; {_GO_ON}"
    if not CompiledAttention.serves(decoder.attention.spec):
        return f"its attention is not computed by compiled kernels; {_GO_ON}"
    if not decoder.attention.is_independent:
        return "without compiled kernels attention rounds by what is computed beside it; install a C++ compiler (g++)"
    if not all(recurrence.is_independent for recurrence in decoder.recurrences):
        return f"its linear attention rounds by what is computed beside it; {_GO_ON}"
    return None
