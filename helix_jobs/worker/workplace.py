"""Workplace: a worker's device and the models on it, which it keeps while it is paused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from helix_jobs.engine.loading.open_engine import device_name, load_engine, release_memory
from helix_jobs.worker.device_lock import DeviceLock
from helix_jobs.worker.short_thread import on_short_thread

if TYPE_CHECKING:
    from collections.abc import Callable

    from helix_jobs.engine.protocol import EngineProtocol
    from helix_jobs.settings import Settings

# How often the lock is looked after, by a worker and while it is paused.
LOCK_CHECK_SECONDS: Final = 60.0


class Workplace:
    """The lock of a device, and an engine on it. One worker after the other uses it, in one process.

    Args:
        settings: The worker's.
        allow_shared: Whether another worker may hold the device, too.
    """

    def __init__(self, settings: Settings, *, allow_shared: bool = False) -> None:
        self.lock = DeviceLock(device_name(settings), settings.lock_dir)
        self._settings = settings
        self._allow_shared = allow_shared
        self._engine: EngineProtocol | None = None

    @property
    def has_models(self) -> bool:
        """Whether an engine is loaded."""
        return self._engine is not None

    def occupy(self) -> None:
        """Take the device; harmless where this worker has kept it.

        Raises:
            DeviceInUseError: Another worker holds it.
        """
        if not self.has_models:
            self.lock.acquire(allow_shared=self._allow_shared)

    def engine(self, on_progress: Callable[[str], None] | None) -> EngineProtocol:
        """The engine that was kept, or a new one. Errors as for ``load_engine``."""
        if self._engine is None:
            self._engine = on_short_thread(lambda: load_engine(self._settings, on_progress), "helix-loading")
        return self._engine

    def close_engine(self) -> None:
        """Close the engine; no thread may be in it."""
        if self._engine is not None:
            self._engine.close()
        self.forget_engine()

    def forget_engine(self) -> None:
        """Let go of an engine that is closed, or in which a thread hangs."""
        self._engine = None

    def leave(self) -> None:
        """Free the models and the device; harmless if that is done."""
        if self.has_models:
            self.close_engine()
            release_memory(self._settings)
        self.lock.release()
