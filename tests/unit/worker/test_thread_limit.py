from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from helix_jobs.worker.thread_limit import check_threads


def test_a_process_that_may_have_them_keeps_none() -> None:
    before = set(threading.enumerate())
    check_threads(32)
    assert set(threading.enumerate()) <= before


@pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
def test_a_process_without_memory_for_their_stacks_is_told_what_to_raise() -> None:
    script = """
import pathlib, resource
from helix_jobs.errors import ConfigurationError
from helix_jobs.worker.thread_limit import check_threads
pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
most = pages * resource.getpagesize() + (80 << 20)
resource.setrlimit(resource.RLIMIT_AS, (most, most))
try:
    check_threads(32)
except ConfigurationError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert "a worker needs 80" in done.stdout
    assert "ulimit -v" in done.stdout
