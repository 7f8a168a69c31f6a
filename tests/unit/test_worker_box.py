from __future__ import annotations

import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.worker_box import make_box

if TYPE_CHECKING:
    from pathlib import Path


def test_what_a_failing_test_leaves_ends_with_its_box(tmp_path: Path) -> None:
    """Else it is told to whichever test runs when Python collects it."""
    box = make_box(tmp_path / "home", tmp_path, redis_url="redis://127.0.0.1:1/0", database_url=None)
    left = box.spawn(sys.executable, "-c", "input()", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    box.close()
    assert left.returncode is not None
    assert left.stdin is not None
    assert left.stdout is not None
    assert left.stdin.closed
    assert left.stdout.closed


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_processes_of_tests_heed_signals_whoever_started_the_tests(number: signal.Signals) -> None:
    """In the background of a script, and under nohup, they would inherit that they ignore them."""
    script = f"import os, time; os.kill(os.getpid(), {int(number)}); time.sleep(1)"
    assert subprocess.run([sys.executable, "-c", script], stderr=subprocess.DEVNULL, check=False).returncode != 0
