"""``helix bench queue`` with two workers on Postgres, and what it leaves behind: nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import psycopg
import pytest

from tests.worker_box import wait_until

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

ROOT = Path(__file__).parents[2]


def databases(url: str) -> AbstractSet[str]:
    with psycopg.connect(url) as connection:
        return {name for (name,) in connection.execute("SELECT datname FROM pg_database") if "helix_bench" in name}


@pytest.mark.redis
@pytest.mark.skipif(sys.platform == "win32", reason="no embedded server on Windows")
def test_a_terminated_bench_takes_its_processes_along(short_tmp: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "helix_jobs", "bench", "queue", "--jobs", "100000", "--no-celery", "--json"],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(short_tmp)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    wait_until(lambda: list(short_tmp.glob("hx-bench-*/prompts.jsonl")), "it does not begin")
    children = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert not json.loads(output)["complete"]
    assert not any(child.is_running() for child in children)
    assert list(short_tmp.iterdir()) == []


@pytest.mark.thorough
@pytest.mark.postgres
@pytest.mark.redis
@pytest.mark.skipif(sys.platform == "win32", reason="no embedded server on Windows")
def test_two_workers_on_postgres(postgres_server_url: str, short_tmp: Path) -> None:
    before = databases(postgres_server_url)
    options = ["--jobs", "300", "--workers", "2", "--step-ms", "2", "--steps", "1-4", "--no-celery", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "helix_jobs", "bench", "queue", *options, "--database", postgres_server_url],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(short_tmp), "HELIX_HOME": str(short_tmp / "untouched")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["complete"]
    assert report["database"].startswith("postgresql")
    assert report["drain"]["jobs"] == report["export"]["rows"] == 300
    assert 0 <= report["drain"]["engine_idle_share"] <= 1
    assert 0 <= report["cancel"]["jobs"] <= 300  # on a slow machine the workers are done first
    assert 0 < report["broker_use"]["peak_depth"] <= 600
    assert 0 < report["submit"]["memory"]["late"] <= report["submit"]["memory"]["peak"]
    assert list(short_tmp.iterdir()) == []
    assert databases(postgres_server_url) <= before
