"""Asking the operating system about processes."""

from __future__ import annotations

import os
import sys


def process_exists(pid: int) -> bool:
    """Whether a process with this id runs on this host; True when in doubt."""
    if pid <= 0:
        return False
    if sys.platform == "win32":
        return _exists_on_windows(pid)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        # It exists and belongs to someone else.
        return True
    return True


def _exists_on_windows(pid: int) -> bool:
    # os.kill(pid, 0) would end the process here: signal 0 is CTRL_C_EVENT.
    import ctypes

    query_limited_information, still_active = 0x1000, 259
    kernel32 = ctypes.windll.kernel32  # type: ignore[attr-defined,unused-ignore]
    handle = kernel32.OpenProcess(query_limited_information, False, pid)  # noqa: FBT003  (the Win32 signature)
    if not handle:
        access_denied = 5
        return bool(kernel32.GetLastError() == access_denied)
    try:
        code = ctypes.c_ulong()
        return not kernel32.GetExitCodeProcess(handle, ctypes.byref(code)) or code.value == still_active
    finally:
        kernel32.CloseHandle(handle)
