"""The device check itself, in its tiny form on the CPU: it must not be broken on the day that a GPU is at hand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

CHECK = Path(__file__).with_name("device_check.py")
SECTIONS = [
    "env", "operators", "memory", "exact fp32", "exact half", "sampled", "shortage", "decode", "counts", "prefill",
    "draft",
]  # fmt: skip


def test_every_section_passes_on_very_small_models(tmp_path: Path) -> None:
    made = subprocess.run(
        [sys.executable, str(CHECK), "--device", "cpu", "--tiny", "--budget", "900", "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
        cwd=tmp_path,
    )
    assert made.returncode == 0, made.stdout + made.stderr
    assert made.stdout.splitlines()[-1] == "FAILED: 0"
    assert len(made.stdout) < 12_000
    records = [json.loads(line) for line in (tmp_path / "gpu.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [record["section"] for record in records] == SECTIONS
    assert all(record["failures"] == [] for record in records)


def test_a_section_that_fails_is_shown_and_passed_over(tmp_path: Path) -> None:
    made = subprocess.run(
        [sys.executable, str(CHECK), "--device", "cpu", "--tiny", "--budget", "1", "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert made.returncode == 1
    assert made.stdout.count("    ! ") == len(SECTIONS)
    assert made.stdout.splitlines()[-1] == f"FAILED: {len(SECTIONS)}"
