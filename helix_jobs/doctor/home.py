"""Check that HELIX_HOME is private to this user, can be written, and has room."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from typing import TYPE_CHECKING

from helix_jobs.doctor.clock import judge_skew
from helix_jobs.doctor.disk import check_room, existing
from helix_jobs.doctor.housekeeping import check_files
from helix_jobs.doctor.verdict import Level, Verdict

if TYPE_CHECKING:
    from pathlib import Path

    from helix_jobs.settings import Settings

SUBJECT = "home"


def check_home(settings: Settings) -> list[Verdict]:
    """Check the directory, or the place where it would be made."""
    home = settings.home
    verdict = _judge_directory(home)
    verdicts = [verdict, check_room("home, disk", home)]
    if verdict.level is not Level.FAILED and home.is_dir():
        verdicts.append(_check_writing(home))
        verdicts += check_files(settings)
    return verdicts


def _judge_directory(home: Path) -> Verdict:
    if home.is_symlink():
        finding = f"{home} is a symbolic link, which Helix does not follow"
        return Verdict(SUBJECT, Level.FAILED, finding, f"set HELIX_HOME to {home.resolve()} if that directory is yours")
    if not home.exists():
        return _judge_absence(home)
    if not home.is_dir():
        return Verdict(SUBJECT, Level.FAILED, f"{home} is a file", "set HELIX_HOME to a directory")
    if not os.access(home, os.R_OK | os.W_OK | os.X_OK):
        finding = f"{home} may not be read or written by this user"
        return Verdict(SUBJECT, Level.FAILED, finding, "correct its owner and permissions, or set HELIX_HOME")
    return Verdict(SUBJECT, Level.OK, str(home)) if sys.platform == "win32" else _judge_privacy(home)


def _judge_absence(home: Path) -> Verdict:
    above = existing(home)
    if os.access(above, os.W_OK | os.X_OK):
        return Verdict(SUBJECT, Level.OK, f"{home} is not there yet; it is made at first use, with mode 0700")
    finding = f"{home} is not there and cannot be made in {above}"
    return Verdict(SUBJECT, Level.FAILED, finding, "set HELIX_HOME to a place this user may write to")


def _judge_privacy(home: Path) -> Verdict:
    status = home.stat()
    mode = status.st_mode & 0o777
    if status.st_uid not in {os.geteuid(), 0}:
        finding = f"{home} belongs to another user (id {status.st_uid})"
        return Verdict(SUBJECT, Level.FAILED, finding, "set HELIX_HOME to a directory of your own, or run as that user")
    if mode & 0o077:
        finding = f"{home} has mode {mode:04o}: other users of this machine may look into it"
        return Verdict(SUBJECT, Level.WARNING, finding, f"chmod 700 {home}")
    return Verdict(SUBJECT, Level.OK, f"{home}, mode {mode:04o}")


def _check_writing(home: Path) -> Verdict:
    """Write a file, and judge how far the file system's clock is ahead.

    The clock is not this machine's if the files are on another machine.
    """
    try:
        with tempfile.TemporaryFile(dir=home) as file:
            file.write(b"x")
            file.flush()
            skew = os.fstat(file.fileno()).st_mtime - time.time()
    except OSError as error:
        finding = f"files cannot be written in {home}: {error.strerror or error}"
        return Verdict("home, writes", Level.FAILED, finding, "free some space or inodes there, or set HELIX_HOME")
    return judge_skew("files", skew)
