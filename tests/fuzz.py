"""Run every fuzzer in turn for some minutes: python tests/fuzz.py [--minutes 60] [--seed 0].

Model files, chat templates, input lines, stored requests and messages. Each fuzzer is a process of its own, starts at
another seed each time, and may take so long and no longer. Ends with 1 and the fuzzer's last lines at the first find.
"""

# ruff: noqa: T201  (a program for the terminal)
from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

TESTS = Path(__file__).parent
# Fuzzer, cases a turn, and the longest a turn may take.
FUZZERS = (
    ("unit/jobs/fuzz_requests.py", 10, 600.0),
    ("unit/engine/fuzz_templates.py", 40, 1_800.0),
    ("unit/engine/fuzz_model_files.py", 150, 1_800.0),
)
LAST_LINES = 60


def run(minutes: float, seed: int) -> int:
    """Return the exit code."""
    end = time.monotonic() + 60 * minutes
    turns: Counter[str] = Counter()
    while time.monotonic() < end:
        for name, count, seconds in FUZZERS:
            # Seeds of two turns do not overlap; each turn of a fuzzer goes on where its last one ended.
            first = seed + turns[name] * count
            said, found = _turn(TESTS / name, first, count, seconds)
            turns[name] += 1
            print(f"{name}, from seed {first}: {said.splitlines()[-1] if said else 'nothing said'}", flush=True)
            if found:
                print("\n".join(said.splitlines()[-LAST_LINES:]), flush=True)
                return 1
            if time.monotonic() >= end:
                break
    print(", ".join(f"{name}: {turns[name] * count:,} cases" for name, count, _ in FUZZERS))
    return 0


def _turn(fuzzer: Path, first: int, count: int, seconds: float) -> tuple[str, bool]:
    """What one turn said, and whether it found something."""
    with tempfile.TemporaryDirectory(prefix="hxfuzz-") as folder:
        arguments = [folder] if "FOLDER" in fuzzer.read_text(encoding="utf-8").split("\n", 1)[0] else []
        paths = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
        try:
            done = subprocess.run(
                [sys.executable, str(fuzzer), *arguments, str(first), str(count)],
                env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            return f"{(error.stdout or b'').decode(errors='replace')}\nit hangs: {seconds:.0f} s were not enough", True
    return done.stdout.decode(errors="replace"), done.returncode != 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Run every fuzzer in turn.")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    sys.exit(run(asked.minutes, asked.seed))
