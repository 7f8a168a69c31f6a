"""DeviceLock: one worker on each device."""

from __future__ import annotations

import logging
import os
import re
from secrets import token_hex
from typing import TYPE_CHECKING

from helix_jobs.errors import ConfigurationError, DeviceInUseError
from helix_jobs.files import make_private_directory
from helix_jobs.locks import FileLock, private_directory

if TYPE_CHECKING:
    from pathlib import Path

logger = logging.getLogger(__name__)


def lock_directory(directory: Path | None) -> Path:
    """Return where the device locks lie, made if absent.

    Args:
        directory: HELIX_LOCK_DIR; None for this user's place on this machine.

    Raises:
        ConfigurationError: It cannot be made.
    """
    if directory is None:
        return private_directory("locks")
    try:
        return make_private_directory(directory)
    except OSError as error:
        raise ConfigurationError(f"HELIX_LOCK_DIR {directory} cannot be made ({error.strerror})") from error


def is_held(directory: Path, device: str | None) -> bool:
    """Whether a worker of this user holds the device, or shares it.

    Args:
        directory: See ``lock_directory``.
        device: Its name in torch, or the name of all of its kind; None for any device.
    """
    for path in directory.glob("device-*.lock"):
        # A server's address, which stands for a device, has dots of its own.
        name = path.name.removeprefix("device-").removesuffix(".lock").partition(".shared-")[0]
        if device is None or name == _slug(device) or name.startswith(f"{_slug(device)}_"):
            lock = FileLock(path)
            if not lock.acquire():
                return True
            lock.release()
    return False


class DeviceLock:
    """Keeps a second worker of this user off a device of this host.

    Two workers on one device would each size their caches from the same free memory. The lock files lie in a directory
    that all processes of this user share (see ``private_directory``), not under HELIX_HOME: two homes may use one
    device. A worker that shares the device holds a file of its own instead, so that others see it after the first
    worker has left.

    Trade-off: a cleaner of old files can remove a locked file, so the lock must be refreshed (``keep``). An abstract
    socket could not be removed, but exists only on Linux, and any user can take its name first.

    Args:
        device: The device's name in torch, or ``fake``.
        directory: Another directory for the lock files; made if absent. Containers that share a device share it.
    """

    def __init__(self, device: str, directory: Path | None = None) -> None:
        self.device = device
        self._directory = directory
        self._lock: FileLock | None = None
        self._sharing: FileLock | None = None
        self._is_lost = False

    def acquire(self, *, allow_shared: bool = False) -> None:
        """Take the device.

        Raises:
            DeviceInUseError: Another worker holds it and ``allow_shared`` is off.
        """
        lock = FileLock(lock_directory(self._directory) / f"device-{_slug(self.device)}.lock")
        alone = lock.acquire(note=f"{os.getpid()}\n")
        if alone and (allow_shared or not self._is_shared(lock.path)):
            self._lock = lock
        elif allow_shared:
            logger.warning("device %s is shared with another worker", self.device)
            self._sharing = FileLock(lock.path.with_suffix(f".shared-{os.getpid()}-{token_hex(2)}.lock"))
            self._sharing.acquire()
        else:
            lock.release()
            raise DeviceInUseError(
                f"another worker on this host already runs on device {self.device}; stop it, choose another --device, "
                "or pass --allow-shared-device"
            )

    def release(self) -> None:
        """Release the device; harmless if not held."""
        lock, sharing = self._lock, self._sharing
        self._lock = self._sharing = None
        if lock is not None:
            lock.release()
        if sharing is not None:
            sharing.release()
            sharing.path.unlink(missing_ok=True)

    def keep(self) -> bool:
        """Refresh the lock's file, now and then; a removed file is made and locked again.

        Returns:
            Whether the device is still held. False: another worker has taken it while the file was gone.
        """
        lock = self._lock or self._sharing
        if lock is None or not lock.held:
            return False
        if lock.is_in_place:
            # Cleaners of old files go by the files' times.
            os.utime(lock.path)
            return True
        lock_directory(self._directory)
        again = FileLock(lock.path)
        if not again.acquire(note=f"{os.getpid()}\n"):
            if not self._is_lost:
                self._is_lost = True
                logger.error(
                    "the lock file of device %s was removed, and another worker runs on it now; stop one of the two",
                    self.device,
                )
            return False
        self._is_lost = False
        logger.warning("somebody removed the lock file of device %s; this worker made it again", self.device)
        lock.release()
        if lock is self._lock:
            self._lock = again
        else:
            self._sharing = again
        return True

    def _is_shared(self, path: Path) -> bool:
        """Whether another living worker shares the device; files of killed workers are removed."""
        shared = False
        for left in path.parent.glob(f"{path.stem}.shared-*.lock"):
            if self._sharing is not None and left == self._sharing.path:
                continue
            lock = FileLock(left)
            if lock.acquire():
                lock.release()
                left.unlink(missing_ok=True)
            else:
                shared = True
        return shared


def _slug(device: str) -> str:
    """A device's name in the name of a file."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", device)
