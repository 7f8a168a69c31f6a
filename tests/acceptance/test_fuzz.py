"""Every fuzzer runs, and finds nothing in a turn of each; hours of it are ``python -m tests.fuzz``."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.worker_box import ROOT


@pytest.mark.slow
def test_a_turn_of_each() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", "--minutes", "10"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("requests", "templates", "model_files"):
        assert f"fuzz_{name}, from seed 0: " in done.stdout
