"""``helix bench serve`` with a real worker and a real server, and what it leaves behind: nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def bench(directory: Path, *options: str) -> dict[str, Any]:
    """What ``helix bench serve`` reports of the fake engine, which leaves nothing behind."""
    done = subprocess.run(
        [sys.executable, "-m", "helix_jobs", "bench", "serve", "--max-batch-size", "2", "--json", *options],
        cwd=ROOT,
        env={
            **os.environ,
            "TMPDIR": str(directory),
            "HELIX_HOME": str(directory / "home"),
            "HELIX_LOCK_DIR": str(directory / "locks"),
            "HELIX_ENGINE": "fake",
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not list(directory.glob("hx-bench-*"))
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@pytest.mark.thorough
@pytest.mark.redis
@pytest.mark.skipif(sys.platform == "win32", reason="no embedded server on Windows")
def test_waits_are_measured_alone_and_beside_bulk_work(short_tmp: Path) -> None:
    alone, beside = bench(short_tmp, "--requests", "3")["parts"]
    assert (alone["beside"], beside["beside"]) == ("nothing", "bulk")
    for part in (alone, beside):
        assert 0 < part["engine"]["p50"] < part["first_piece"]["p50"]
        assert part["above"]["p50"] > 0
    assert alone["bulk_tokens_per_second"] is None
    assert beside["bulk_tokens_per_second"] >= 0


@pytest.mark.thorough
@pytest.mark.redis
@pytest.mark.skipif(sys.platform == "win32", reason="no embedded server on Windows")
def test_bulk_work_is_measured_alone_and_under_load(short_tmp: Path) -> None:
    turns = bench(short_tmp, "--load", "0.2", "--max-tokens", "8")["turns"]
    assert [turn["is_loaded"] for turn in turns] == [False, True] * 3
    assert sum(turn["bulk_tokens_per_second"] for turn in turns) > 0
    assert sum(turn["worker"] for turn in turns) > 0
    for turn in turns:
        if turn["is_loaded"]:
            assert turn["health_per_second"] > 0
            assert turn["status_per_second"] > 0
            assert 0 < turn["health"]["p50"] <= turn["health"]["p99"]
