"""ProcessIdentity: which process a worker is, so that others can tell a dead process from one they cannot see.

A host name and a process number do not identify a process: every container starts with number 1, two machines may both
be called ``localhost``, and numbers return after a restart. A process is *gone* if this process sees the same process
table (same boot of the same machine, same pid namespace) and does not find it there. Where this is uncertain, the
process is not called gone, and the reconciler waits for its heartbeat to stop instead (see ``reconciler``).
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

# The value of ``started`` for a process that exists but whose start cannot be read.
UNKNOWN_START: Final = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessIdentity:
    """One process, told from all others on any machine at any time; None is unknown.

    Attributes:
        pid: The process number, in its own namespace.
        boot_id: Id of the running system; every boot of every machine has its own.
        pid_namespace: The namespace of ``pid``; None also where the system has no namespaces.
        started: When the process started, by a clock that cannot be set. Compared for equality only.
    """

    pid: int
    boot_id: str | None = None
    pid_namespace: str | None = None
    started: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Here:
    """What this process can see of other processes.

    Attributes:
        boot_id: Id of this running system.
        pid_namespace: The namespace of this process.
        started: Process number -> its start; None if there is no such process, ``UNKNOWN_START`` if its start cannot
            be read.
    """

    boot_id: str | None
    pid_namespace: str | None
    started: Callable[[int], str | None]


def is_gone(identity: ProcessIdentity, here: Here) -> bool:
    """Whether the process has certainly ended; False when in doubt."""
    if identity.boot_id is None or identity.boot_id != here.boot_id or identity.pid_namespace != here.pid_namespace:
        return False
    started = here.started(identity.pid)
    if started is None:
        return True
    return bool(started and identity.started) and started != identity.started


def this_process() -> ProcessIdentity:
    """The identity of the calling process."""
    boot_id, pid_namespace = _system()
    pid = os.getpid()
    return ProcessIdentity(pid=pid, boot_id=boot_id, pid_namespace=pid_namespace, started=started(pid) or None)


def here() -> Here:
    """What the calling process can see of other processes."""
    boot_id, pid_namespace = _system()
    return Here(boot_id=boot_id, pid_namespace=pid_namespace, started=started)


def started(pid: int) -> str | None:
    """When a process of this namespace started; None if there is none, ``UNKNOWN_START`` if it cannot be read."""
    if not _exists(pid):
        return None
    found: str | None = UNKNOWN_START
    # macOS gives the start by a clock that can be set, so a reused process number is not recognised there.
    if sys.platform == "linux":
        found = _started_on_linux(pid)
    elif sys.platform == "win32":
        found = _started_on_windows(pid)
    return found


def _exists(pid: int) -> bool:
    """Whether a process with this id runs on this host; True when in doubt."""
    if pid <= 0:  # groups of processes, to the call below
        return False
    if sys.platform == "win32":
        import psutil

        return psutil.pid_exists(pid)
    # Not psutil: where /proc hides other users' processes, psutil takes them for ended.
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it belongs to someone else
        return True
    return True


def _started_on_linux(pid: int) -> str | None:
    """Clock ticks from the system's boot to the process's start. None for a zombie: it has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:  # it has ended just now, or /proc hides it from this user
        return UNKNOWN_START
    # The second field, the program's name in parentheses, may hold any characters. See proc(5).
    fields = stat.rpartition(")")[2].split()
    state, threads, start = fields[0], int(fields[17]), fields[19]
    return None if state in "ZX" and threads <= 1 else start


def _started_on_windows(pid: int) -> str:
    import psutil

    try:
        return f"{psutil.Process(pid).create_time():.3f}"
    except psutil.Error:
        return UNKNOWN_START


def _system() -> tuple[str | None, str | None]:
    """The boot id and the pid namespace; both None where Linux does not tell the namespace."""
    namespace = _pid_namespace()
    return (None if sys.platform == "linux" and namespace is None else _boot_id()), namespace


@functools.cache
def _boot_id() -> str | None:
    if sys.platform == "linux":
        with suppress(OSError):
            return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip() or None
    elif sys.platform == "darwin":
        with suppress(OSError, subprocess.SubprocessError):
            command = ["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"]
            output = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)  # noqa: S603
            return output.stdout.strip() or None
    elif sys.platform == "win32":
        return _boot_id_on_windows()
    return None


def _boot_id_on_windows() -> str | None:
    """The id of the Windows installation and its number of boots."""
    if sys.platform == "win32":
        import winreg

        control = r"SYSTEM\CurrentControlSet\Control\Session Manager\Memory Management\PrefetchParameters"
        found = []
        with suppress(OSError):
            for path, name in ((r"SOFTWARE\Microsoft\Cryptography", "MachineGuid"), (control, "BootId")):
                with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, path) as key:
                    found.append(str(winreg.QueryValueEx(key, name)[0]))
            return "-".join(found)
    return None


def _pid_namespace() -> str | None:
    """Linux: the namespace of process numbers, such as ``pid:[4026531836]``."""
    if sys.platform != "linux":
        return None
    with suppress(OSError):
        # In a /proc of another namespace, ``self`` leads nowhere or to another process.
        if str(Path("/proc/self").readlink()) == str(os.getpid()):
            return str(Path("/proc/self/ns/pid").readlink())
    return None
