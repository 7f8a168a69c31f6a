"""Files and directories that nobody but this user can read: they hold prompts, answers and logs."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Final, cast

if TYPE_CHECKING:
    from pathlib import Path
    from typing import BinaryIO

PRIVATE_DIRECTORY: Final = 0o700
PRIVATE_FILE: Final = 0o600
_OTHERS: Final = 0o077


def open_private(path: Path, mode: str) -> BinaryIO:
    """Open a file for writing; one that is made is made with mode 0600, whatever the umask."""
    # Not Path.open, which takes no opener.
    return cast("BinaryIO", open(path, mode, opener=_private))


def touch_private(path: Path) -> None:
    """Make an empty file with mode 0600; one that is there is left alone."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT, PRIVATE_FILE))


def is_open_to_others(path: Path) -> bool:
    """Whether group or others may do anything with it; never on Windows, whose modes say nothing."""
    return sys.platform != "win32" and bool(path.stat().st_mode & _OTHERS)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, PRIVATE_FILE)
