"""The embedded broker's keeper: a small process that starts the server and ends it when nobody needs it any more.

It runs by its path, with the standard library alone: it must be light, as it lives as long as the server. A worker
cannot do this, as it may be killed. The server cannot either, as it knows neither its directory nor its users.

It ends the server
- at once when its directory or its socket is gone or replaced: nobody can reach this server any more;
- when nobody has held the users' lock for a while; the system drops a lock with the process that held it.

On Linux the server also ends with its keeper.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time

if sys.platform != "win32":  # where there is no embedded broker
    import fcntl

LOOK_SECONDS = 1.0
START_LOOKS = 30
LOG_BYTES = 8_000_000
_PR_SET_PDEATHSIG = 1


def main(users_lock: str, start_lock: str, socket: str, unused_seconds: float, command: list[str]) -> int:
    """Run the server until it ends; returns its exit code.

    Args:
        users_lock: Path of the file on which every user holds a shared lock.
        start_lock: Path of the file that is locked while a server is started or stopped.
        socket: The server's socket, which must not be there yet.
        unused_seconds: How long the server may be unused before it is ended.
        command: The server's command line.
    """
    server = subprocess.Popen(command, preexec_fn=_die_with_parent)  # noqa: PLW1509, S603  (no threads here; no shell)
    signal.signal(signal.SIGTERM, lambda *_: server.kill())
    directory = os.path.dirname(users_lock)  # noqa: PTH120  (pathlib costs memory)
    home, identity = _identity(directory), None
    used_at = time.monotonic()
    looks = 0
    while True:
        looks += 1
        with contextlib.suppress(subprocess.TimeoutExpired):
            return server.wait(LOOK_SECONDS)
        _cut_log()
        there = _identity(socket)
        identity = identity or there
        if _identity(directory) != home or there != identity or (identity is None and looks > START_LOOKS):
            return _end(server)
        with _locked(start_lock, fcntl.LOCK_EX) as alone:
            if not alone:
                continue  # a process is starting or stopping it
            with _locked(users_lock, fcntl.LOCK_EX) as unused:
                if not unused:
                    used_at = time.monotonic()
                elif time.monotonic() - used_at >= unused_seconds:
                    with contextlib.suppress(OSError):
                        os.unlink(socket)  # noqa: PTH108  (pathlib costs memory)
                    return _end(server)


def _cut_log() -> None:
    """Empty the log once it has grown too large: the embedded broker repeats any lasting problem."""
    with contextlib.suppress(OSError):
        if os.fstat(1).st_size > LOG_BYTES:  # nothing but a file has a size
            os.ftruncate(1, 0)


def _end(server: subprocess.Popen[bytes]) -> int:
    # Killed, not shut down: a shutdown would remove the socket of a server that took its place.
    server.kill()
    return server.wait()


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


@contextlib.contextmanager
def _locked(path: str, kind: int):  # type: ignore[no-untyped-def]  # noqa: ANN202  (typing is not imported here)
    """Hold a lock while the block runs; yields whether it could be taken. Without its file nobody holds it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        yield True
        return
    try:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


def _die_with_parent() -> None:
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None

if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4]), sys.argv[5:]))
