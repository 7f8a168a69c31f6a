"""File locks that end with the process that holds them: one starter of a broker, one worker of a home.

The operating system drops such a lock however its holder ends, so no stale lock can remain.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, Self

from helix_jobs.errors import ConfigurationError
from helix_jobs.files import private_descriptor

if TYPE_CHECKING:
    from types import TracebackType

_MEETING_PLACES: Final = ("/run/lock", "/tmp")  # noqa: S108  (a directory in it is made and checked)


class FileLock:
    """A lock on a file. The file stays after the release; only the lock counts.

    Trade-off: the filelock package would save these lines. But it has no shared lock on a file, and it hides the
    descriptor that this class needs to check the file's owner and notice its removal.

    Args:
        path: The file; made with mode 0600. Its directory must exist.
        shared: Whether other shared locks may be held at the same time. Not on Windows.
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
        """Whether the lock is held and its file still in place: a removed file keeps nobody out."""
        return self._file is not None and _is_at(self._file, self.path)

    def acquire(self, *, blocking: bool = False, note: str = "") -> bool:
        """Take the lock and write ``note`` into the file; False if another process holds it."""
        if self._file is not None:
            return True
        while self._file is None:
            # Not inheritable by child processes, so the lock ends with this process alone.
            file = os.fdopen(private_descriptor(self.path, os.O_RDWR | os.O_CREAT), "r+", encoding="utf-8")
            try:
                if not _lock(file, blocking=blocking, shared=self._shared):
                    file.close()
                    return False
                if not _is_at(file, self.path):  # removed between opening and locking: others lock another file
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
        """Release the lock; harmless if not held."""
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


def private_directory(*parts: str) -> Path:
    """Return a private directory, made with mode 0700, where one user's processes find each other.

    Its path depends on nothing that differs between shells or services, such as TMPDIR.

    Raises:
        ConfigurationError: Another user made it first, or it cannot be made.
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
    # On some systems only root may write to /run/lock.
    parent = next((place for place in _MEETING_PLACES if os.access(place, os.W_OK | os.X_OK)), _MEETING_PLACES[-1])
    return Path(parent, f"helix-{os.getuid()}")


def _is_at(file: IO[str], path: Path) -> bool:
    """Whether an open file is the one at ``path``."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


if sys.platform == "win32":

    def _lock(file: IO[str], *, blocking: bool, shared: bool) -> bool:  # noqa: ARG001  (there are none here)
        import msvcrt

        # Locks one byte far past the note, as others cannot read a locked range. LK_LOCK gives up after ten seconds.
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
