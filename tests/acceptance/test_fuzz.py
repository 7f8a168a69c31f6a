"""Every fuzzer runs, and finds nothing in a turn of each; hours of it are ``python tests/fuzz.py``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).parents[1] / "fuzz.py"


@pytest.mark.slow
def test_a_turn_of_each() -> None:
    done = subprocess.run([sys.executable, str(FUZZ), "--minutes", "10"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("requests", "templates", "model_files"):
        assert f"fuzz_{name}.py, from seed 0: " in done.stdout
