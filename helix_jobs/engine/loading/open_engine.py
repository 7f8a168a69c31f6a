"""Which engine a worker runs: Helix's own, a server of the user's, or the fake one, as the settings ask.

Each is imported only when it is chosen: torch takes seconds.
"""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import psutil

from helix_jobs.bounds import DEFAULT_MAX_BATCH_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

    from helix_jobs.engine.protocol import EngineProtocol
    from helix_jobs.settings import Settings


def load_engine(settings: Settings, on_progress: Callable[[str], None] | None = None) -> EngineProtocol:
    """Build the engine the settings name.

    Raises:
        ConfigurationError: The device or the dtype is not available.
        EndpointUnreachableError: The user's server does not answer.
        ModelError: The models cannot be served here; the subclasses say why.
    """
    if settings.engine == "fake":
        from helix_jobs.engine.fake_engine import FakeEngine

        return FakeEngine.from_environment(
            max_batch_size=settings.max_batch_size or DEFAULT_MAX_BATCH_SIZE,
            adapters=tuple(name for name, _ in settings.adapters),
        )
    if settings.engine == "endpoint":
        from helix_jobs.engine.loading.load_endpoint import load_endpoint

        return load_endpoint(settings, on_progress)
    from helix_jobs.engine.loading.load_engine import load_engine as load

    return load(settings, on_progress)


def device_name(settings: Settings) -> str:
    """Name the device the engine will run on, before any model is read.

    Raises:
        ConfigurationError: There is no such device.
    """
    if settings.engine == "fake":
        return "fake"
    if settings.engine == "endpoint":
        # No device of this machine: the lock keeps a second worker off the same server, unless it is wanted.
        return str(settings.endpoint_url)
    from helix_jobs.engine.loading.model_loader import get_device

    return str(get_device(settings.device))


def memory_of_others(settings: Settings) -> float | None:
    """The share of the device's memory that other processes hold; None if there is no device that tells."""
    if settings.engine != "helix":
        return None
    from helix_jobs.engine.devices.devices import memory_share_of_others
    from helix_jobs.engine.loading.model_loader import get_device

    return memory_share_of_others(get_device(settings.device))


def memory_in_use(settings: Settings) -> dict[str, int]:
    """Bytes: ``process`` are in use by this process, ``device`` on its device, of ``device_total``.

    What is not known is left out; a CPU has no memory of its own.
    """
    found = {"process": int(psutil.Process().memory_info().rss)}
    if settings.engine == "helix":
        from helix_jobs.engine.devices.devices import free_memory, total_memory
        from helix_jobs.engine.loading.model_loader import get_device

        device = get_device(settings.device)
        total, free = total_memory(device), free_memory(device)
        if total is not None and free is not None:
            found |= {"device": max(0, total - free), "device_total": total}
    return found


def release_memory(settings: Settings) -> None:
    """Give the memory of an engine that nothing refers to any more back to its device, and to the system."""
    if settings.engine == "helix":
        from helix_jobs.engine.devices.devices import cleanup_memory
        from helix_jobs.engine.loading.model_loader import get_device

        cleanup_memory(get_device(settings.device))
    else:
        gc.collect()
