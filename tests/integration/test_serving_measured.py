"""``helix bench serve`` with a real worker and a real server, and what it leaves behind: nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.redis
@pytest.mark.skipif(sys.platform == "win32", reason="no embedded server on Windows")
def test_waits_are_measured_alone_and_beside_bulk_work(short_tmp: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "helix_jobs", "bench", "serve", "--requests", "3", "--max-batch-size", "2", "--json"],
        cwd=ROOT,
        env={
            **os.environ,
            "TMPDIR": str(short_tmp),
            "HELIX_HOME": str(short_tmp / "home"),
            "HELIX_LOCK_DIR": str(short_tmp / "locks"),
            "HELIX_ENGINE": "fake",
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    alone, beside = json.loads(done.stdout)["parts"]
    assert (alone["beside"], beside["beside"]) == ("nothing", "bulk")
    for part in (alone, beside):
        assert 0 < part["engine"]["p50"] < part["first_piece"]["p50"]
        assert part["above"]["p50"] > 0
    assert alone["bulk_tokens_per_second"] is None
    assert beside["bulk_tokens_per_second"] >= 0
    assert not list(short_tmp.glob("hx-bench-*"))
