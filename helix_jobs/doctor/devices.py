"""Check the devices: which ones exist, which one is used, and which kernels compute on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

from helix_jobs.bounds import DEFAULT_MAX_BATCH_SIZE
from helix_jobs.device_names import DIRECTML_DEVICE_TYPE
from helix_jobs.doctor.verdict import Level, Verdict, finding_and_remedy
from helix_jobs.engine.devices.devices import resolve_dtype
from helix_jobs.engine.kernels.cpu.kernels import COMMON_HEAD_DIM, load_kernels
from helix_jobs.engine.loading.byte_trial import is_exact_faster
from helix_jobs.engine.loading.model_loader import available_devices, describe_device, directml_absence, get_device
from helix_jobs.engine.loading.weight_format import INT8, PACKED
from helix_jobs.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

    from helix_jobs.engine.kernels.cpu.kernels import NativeKernels
    from helix_jobs.settings import Settings

# How weights are stored; such a target computes in the dtype of auto.
_STORED: Final = (INT8, PACKED)


def check_devices(settings: Settings) -> list[Verdict]:
    """List the devices and the one that is used; say why DirectML is missing."""
    found = available_devices()
    verdicts = [Verdict("devices", Level.OK, ", ".join(describe_device(device) for device in found))]
    absence = directml_absence()
    if absence:
        verdicts.append(Verdict("directml", Level.OK, absence))
    try:
        chosen = get_device(settings.device)
    except ConfigurationError as error:
        remedy = "give --device, or set HELIX_DEVICE, to one of those"
        return [*verdicts, Verdict("device in use", Level.FAILED, str(error), remedy)]
    return [*verdicts, _chosen(chosen, found)]


def _chosen(chosen: torch.device, found: tuple[torch.device, ...]) -> Verdict:
    name = f"{chosen}, {describe_device(chosen)}"
    if chosen.type != DIRECTML_DEVICE_TYPE:
        return Verdict("device in use", Level.OK, name)
    if torch.version.hip is not None and any(device.type == "cuda" for device in found):
        finding = f"{name}; this torch is a ROCm build, which is faster on the same card"
        return Verdict("device in use", Level.WARNING, finding, "give --device rocm, or set HELIX_DEVICE=rocm")
    return Verdict("device in use", Level.OK, name)


def check_kernels(settings: Settings) -> list[Verdict]:
    """Compile the CPU kernels, unless they are compiled already."""
    device = _device(settings)
    if device is None or device.type != "cpu":
        return []
    if settings.compile == "off":
        return [Verdict("compiled kernels", Level.OK, "switched off by HELIX_COMPILE")]
    try:
        dtype = resolve_dtype("auto" if settings.dtype in _STORED else settings.dtype, device, None)
        # make_home() gives the folder private modes; the mkdir in load_kernels would give default ones.
        home = settings.make_home()
        kernels = load_kernels(home / "native", dtype, device, COMMON_HEAD_DIM)
    except ConfigurationError as error:
        level = Level.FAILED if settings.compile == "on" else Level.WARNING
        return [Verdict("compiled kernels", level, *finding_and_remedy(error))]
    ready = f"ready, for {str(dtype).removeprefix('torch.')}"
    if settings.dtype == INT8:
        ready += f"; {_products_of_blocks(kernels, settings, home / 'profiles')}"
    return [Verdict("compiled kernels", Level.OK, ready)]


def _products_of_blocks(kernels: NativeKernels, settings: Settings, profiles: Path) -> str:
    """How an int8 worker multiplies weights in blocks here; a worker finds the same."""
    batch = settings.max_batch_size or DEFAULT_MAX_BATCH_SIZE
    if is_exact_faster(kernels, batch, profiles):
        return f"weights in blocks are multiplied exactly, which is faster here for {batch} sequences at once"
    return "weights in blocks are multiplied with rounded activations"


def _device(settings: Settings) -> torch.device | None:
    try:
        return get_device(settings.device)
    except ConfigurationError:  # check_devices has said so
        return None
