"""Locks on files that die with the process that holds them: one worker a device, one starter of a broker.

The operating system drops such a lock when its holder ends in whatever way, so nothing stale can be left behind.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import tempfile
from pathlib import Path
from secrets import token_hex
from typing import IO, TYPE_CHECKING, Final, Self

from helix_jobs.errors import ConfigurationError, DeviceInUseError
from helix_jobs.files import make_private_directory, private_descriptor

if TYPE_CHECKING:
    from types import TracebackType

logger = logging.getLogger(__name__)

_MEETING_PLACES: Final = ("/run/lock", "/tmp")  # noqa: S108  (a directory in it is made and checked)


class FileLock:
    """A lock on a file. The file stays behind when it is released; only the lock counts.

    Args:
        path: The file; made with mode 0600. Its directory must exist.
        shared: Others may hold it, too, if theirs are shared. Not on Windows.
    """

    def __init__(self, path: Path, *, shared: bool = False) -> None:
        self.path = path
        self._shared = shared
        self._file: IO[str] | None = None

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._file is not None

    @property
    def is_in_place(self) -> bool:
        """Whether the lock is held and others find its file: one that was removed keeps nobody out."""
        return self._file is not None and _is_at(self._file, self.path)

    def acquire(self, *, blocking: bool = False, note: str = "") -> bool:
        """Take the lock and write ``note`` into the file; False if someone else holds it."""
        if self._file is not None:
            return True
        while self._file is None:
            # Not inheritable by child processes, so the lock ends with this process alone.
            file = os.fdopen(private_descriptor(self.path, os.O_RDWR | os.O_CREAT), "r+", encoding="utf-8")
            try:
                if not _lock(file, blocking=blocking, shared=self._shared):
                    file.close()
                    return False
                if not _is_at(file, self.path):  # removed between opening and locking it: others lock another file
                    file.close()
                    continue
                if not self._shared:
                    file.truncate(0)
                    file.write(note)
                    file.flush()
            except BaseException:
                file.close()
                raise
            self._file = file
        return True

    def release(self) -> None:
        """Let go; harmless if not held."""
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def __enter__(self) -> Self:
        self.acquire(blocking=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class DeviceLock:
    """Keeps a second worker of this user off a device of this host.

    Two workers on one device would each size their caches from the same free memory. The locks lie where every process
    of this user looks (see ``private_directory``), not under HELIX_HOME: two homes share one device all the same.
    A worker that shares holds a file of its own instead, so that it is seen when the first one has left.

    Trade-off: a file can be removed while it is locked, by whoever sweeps old ones, so it must be looked after
    (``keep``); an abstract socket could not, but exists on Linux alone, and any user can take its name first.

    Args:
        device: The device's name as torch says it, or ``fake``.
        directory: Where the lock files lie instead; made if it is not there. Containers that share a device share one.
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
        directory = self._make_directory()
        slug = re.sub(r"[^A-Za-z0-9._-]", "_", self.device)
        lock = FileLock(directory / f"device-{slug}.lock")
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
        """Let go; harmless if not held."""
        if self._lock is not None:
            self._lock.release()
        if self._sharing is not None:
            self._sharing.release()
            self._sharing.path.unlink(missing_ok=True)

    def keep(self) -> bool:
        """Look after the lock's file, every now and then; one that is gone is made and locked again.

        Returns:
            Whether the device is still held. False: another worker has taken it while the file was gone.
        """
        lock = self._lock or self._sharing
        if lock is None or not lock.held:
            return False
        if lock.is_in_place:
            # Whatever removes old files goes by their times.
            os.utime(lock.path)
            return True
        self._make_directory()
        again = FileLock(lock.path)
        if not again.acquire(note=f"{os.getpid()}\n"):
            if not self._is_lost:
                self._is_lost = True
                logger.error(
                    "the lock file of device %s was removed, and another worker runs on it by now; stop one of the two",
                    self.device,
                )
            return False
        self._is_lost = False
        logger.warning("the lock file of device %s was removed by somebody and is made again", self.device)
        lock.release()
        if lock is self._lock:
            self._lock = again
        else:
            self._sharing = again
        return True

    def _make_directory(self) -> Path:
        if self._directory is None:
            return private_directory("locks")
        try:
            return make_private_directory(self._directory)
        except OSError as error:
            raise ConfigurationError(f"HELIX_LOCK_DIR {self._directory} cannot be made ({error.strerror})") from error

    def _is_shared(self, path: Path) -> bool:
        """Whether another living worker shares the device; what killed ones have left is removed."""
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


def private_directory(*parts: str) -> Path:
    """Return a directory of this user alone, made with mode 0700, where processes of one user find each other.

    It depends on nothing that differs from one shell or service to the next, such as TMPDIR.

    Raises:
        ConfigurationError: Someone else made it first or it cannot be made.
    """
    directory = _meeting_place()
    for path in (directory, directory.joinpath(*parts)):
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = path.lstat()
        except OSError as error:
            raise ConfigurationError(
                f"{path} cannot be made ({error.strerror}); make {directory.parent} writable"
            ) from error
        if sys.platform != "win32" and (status.st_uid != os.getuid() or status.st_mode & 0o077 or path.is_symlink()):
            raise ConfigurationError(f"{path} is not private to this user; remove it")
    return directory.joinpath(*parts)


def _meeting_place() -> Path:
    if sys.platform == "win32":
        return Path(tempfile.gettempdir(), "helix")
    # Where nobody but root may write, as in /run/lock of some systems, no worker of this user can.
    parent = next((place for place in _MEETING_PLACES if os.access(place, os.W_OK | os.X_OK)), _MEETING_PLACES[-1])
    return Path(parent, f"helix-{os.getuid()}")


def _is_at(file: IO[str], path: Path) -> bool:
    """Whether an open file is the one that lies at ``path``."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


if sys.platform == "win32":

    def _lock(file: IO[str], *, blocking: bool, shared: bool) -> bool:  # noqa: ARG001  (there are none here)
        import msvcrt

        # One byte far past the note: a locked range cannot be read by others. LK_LOCK gives up after ten seconds.
        file.seek(1 << 30)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_LOCK if blocking else msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        file.seek(0)
        return True

else:

    def _lock(file: IO[str], *, blocking: bool, shared: bool) -> bool:
        import fcntl

        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if blocking else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        return True
