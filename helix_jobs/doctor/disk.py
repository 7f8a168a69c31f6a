"""Check a disk's free room and the kind of its file system."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

import psutil

from helix_jobs.doctor.verdict import Level, Verdict
from helix_jobs.wording import rough_size

# Below the first limit any write may fail; below the second a night's answers may fill the disk.
_TOO_LITTLE: Final = 256 << 20
_LITTLE: Final = 2 << 30
# SQLite's locks and shared memory need a local file system.
_NETWORK: Final = (
    "nfs",
    "cifs",
    "smb",
    "9p",
    "afs",
    "ceph",
    "gluster",
    "lustre",
    "beegfs",
    "fuse.sshfs",
    "fuse.rclone",
)


def judge_room(subject: str, free: int, where: Path) -> Verdict:
    """Judge whether ``free`` bytes are enough."""
    finding = f"{rough_size(free)} free for {where}"
    if free >= _LITTLE:
        return Verdict(subject, Level.OK, finding)
    level = Level.FAILED if free < _TOO_LITTLE else Level.WARNING
    return Verdict(subject, level, finding, "free some space: a job is not acknowledged until its result is on disk")


def check_room(subject: str, path: Path) -> Verdict:
    """Check the disk that holds ``path``, or would hold it."""
    where = existing(path)
    try:
        free = shutil.disk_usage(where).free
    except OSError as error:
        return Verdict(subject, Level.WARNING, f"{where} cannot be asked for its free space ({error.strerror})")
    return judge_room(subject, free, path)


def existing(path: Path) -> Path:
    """The path itself, or its nearest parent folder that exists."""
    return next((folder for folder in (path, *path.parents) if folder.exists()), Path(path.anchor))


def file_system(path: Path) -> str | None:
    """The type of the file system that holds ``path``, as the system names it; None if unknown."""
    resolved = existing(path).resolve()
    mounts = [
        (len(partition.mountpoint), partition.fstype)
        for partition in psutil.disk_partitions(all=True)
        if resolved.is_relative_to(partition.mountpoint)
    ]
    return max(mounts)[1].lower() if mounts else None


def is_network(kind: str | None) -> bool:
    """Whether a file system of this type is on another machine."""
    return kind is not None and kind.startswith(_NETWORK)
