"""ModelReport: whether a model is served here, what it needs in each format, and what would make it fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from helix_jobs.doctor.verdict import finding_and_remedy
from helix_jobs.engine.config import NO_DRAFT
from helix_jobs.engine.devices.devices import describe_device, free_memory
from helix_jobs.engine.kernels.cpu.build import compiles_kernels
from helix_jobs.engine.loading.cache_format import check_cache_device, check_cache_geometry
from helix_jobs.engine.loading.draft_spec import DraftSpec
from helix_jobs.engine.loading.model_adapters import check_adapters
from helix_jobs.engine.loading.model_fit import Fit, fit
from helix_jobs.engine.loading.model_loader import check_recurrent, get_device
from helix_jobs.engine.loading.model_memory import shortage_remedy
from helix_jobs.engine.loading.model_outline import ModelOutline, model_outline
from helix_jobs.engine.loading.model_pair import ModelPair
from helix_jobs.engine.loading.peft_adapter import read_adapter
from helix_jobs.engine.loading.weight_format import INT8, PACKED, check_packs, format_of, formats_for
from helix_jobs.errors import ConfigurationError, ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from helix_jobs.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelReport:
    """One model, examined for one device.

    Attributes:
        name: Its name as the user gave it.
        outline: What it is; None if it is not served, or was not found.
        reason: Why there is no outline.
        remedy: What to do about that.
        fits: What it needs in each format, first in the one that a worker would choose with these settings.
        advice: What to do where that does not fit, or the cache does not hold a whole sequence; each by itself.
    """

    name: str
    outline: ModelOutline | None = None
    reason: str | None = None
    remedy: str | None = None
    fits: tuple[Fit, ...] = ()
    advice: tuple[str, ...] = ()

    @property
    def is_well(self) -> bool:
        """Whether a worker would start with it, as far as the device tells."""
        return bool(self.fits) and self.fits[0].fits is not False


@dataclass(frozen=True, slots=True)
class Place:
    """The device that models are examined for.

    Attributes:
        device: The device.
        description: Its name for a person.
        available: Free bytes on it; None if it does not tell.
    """

    device: torch.device
    description: str
    available: int | None


def examine(settings: Settings) -> Place:
    """Find the device that a worker would take, and its free memory.

    Raises:
        ConfigurationError: There is no such device.
    """
    device = get_device(settings.device)
    return Place(device, describe_device(device), free_memory(device))


def report_models(
    names: Sequence[str],
    settings: Settings,
    place: Place,
    context: int | None = None,
) -> list[ModelReport]:
    """Examine models as targets, beside the draft that the settings name.

    Args:
        names: Directories, ``.gguf`` files, hub ids, or ``demo``.
        settings: A worker's.
        place: Where they would compute.
        context: Tokens of a sequence, prompt and output together; None takes each model's own limit.

    Raises:
        ConfigurationError: The draft, the dtype or that of the cache cannot be had on this device.
        ModelError: The draft model or an adapter is not served, or not found.
    """
    check_cache_device(settings.kv_cache_dtype, place.device)
    spec = DraftSpec.parse(settings.draft_model)
    draft = NO_DRAFT if settings.speculation_depth == 0 else spec.model
    beside = None if draft in (NO_DRAFT, INT8) else model_outline(draft, settings.home)
    adapters = [read_adapter(name, folder) for name, folder in settings.adapters]
    if beside is not None:
        check_cache_geometry(settings.kv_cache_dtype, draft, beside.sizes.geometry)
    reports = []
    for name in names:
        try:
            outline = model_outline(name, settings.home)
            check_recurrent(name, place.device, is_recurrent=bool(outline.sizes.states))
            check_cache_geometry(settings.kv_cache_dtype, name, outline.sizes.geometry)
            if settings.dtype == PACKED:
                check_packs(name, place.device, has_blocks=outline.has_blocks)
            numbers = check_adapters(name, outline.config, adapters)
        except (ModelError, ConfigurationError) as error:
            reason, remedy = finding_and_remedy(error)
            reports.append(ModelReport(name=name, reason=reason, remedy=remedy))
            continue
        pair = ModelPair(
            place.device,
            outline.sizes,
            None if beside is None else beside.sizes,
            draft == INT8,
            compiles_kernels(place.device, settings.compile),
            spec.copies_blocks,
            numbers,
            settings.kv_cache_dtype,
        )
        reports.append(_report(outline, pair, settings, context, place.available))
    return reports


def _report(
    outline: ModelOutline, pair: ModelPair, settings: Settings, context: int | None, available: int | None
) -> ModelReport:
    chosen = format_of(settings.dtype, pair.device, outline.stored, has_blocks=outline.has_blocks)
    formats = dict.fromkeys([chosen, *formats_for(pair.device, outline.stored, has_blocks=outline.has_blocks)])
    length = min(context or outline.sizes.context, outline.sizes.context)
    fits = tuple(fit(pair, one, settings, length, available) for one in formats)
    advice: list[str] = []
    if fits[0].fits is False and available is not None:
        advice = [shortage_remedy(pair.remedies(chosen, outline.stored, available))]
    elif not fits[0].sequences:
        others = [f"--dtype {one.chosen.name}" for one in fits[1:] if one.sequences]
        advice = [f"keep prompt and output together below {fits[0].cache_tokens:,} tokens"]
        advice += [f"use {' or '.join(others)}"] if others else []
    return ModelReport(name=outline.name, outline=outline, fits=fits, advice=tuple(advice))
