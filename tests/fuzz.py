"""Run every fuzzer in turn for some minutes: python -m tests.fuzz [--minutes 60] [--seed 0].

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
from dataclasses import dataclass

LAST_LINES = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Fuzzer:
    """A program that makes up cases from a seed.

    Attributes:
        module: What is run, with the first seed and the number of cases.
        count: Cases a turn.
        seconds: The longest a turn may take.
        in_folder: It wants an empty folder, named before the seed.
    """

    module: str
    count: int
    seconds: float
    in_folder: bool = False

    @property
    def name(self) -> str:
        return self.module.rpartition(".")[2]


FUZZERS = (
    Fuzzer(module="tests.unit.intake.fuzz_requests", count=10, seconds=600.0),
    Fuzzer(module="tests.unit.engine.text.fuzz_templates", count=40, seconds=1_800.0),
    Fuzzer(module="tests.unit.engine.loading.fuzz_model_files", count=150, seconds=1_800.0, in_folder=True),
)


def run(minutes: float, seed: int) -> int:
    """Return the exit code."""
    end = time.monotonic() + 60 * minutes
    turns: Counter[str] = Counter()
    while time.monotonic() < end:
        for fuzzer in FUZZERS:
            # Seeds of two turns do not overlap; each turn of a fuzzer goes on where its last one ended.
            first = seed + turns[fuzzer.name] * fuzzer.count
            said, found = _turn(fuzzer, first)
            turns[fuzzer.name] += 1
            print(f"{fuzzer.name}, from seed {first}: {said.splitlines()[-1] if said else 'nothing said'}", flush=True)
            if found:
                print("\n".join(said.splitlines()[-LAST_LINES:]), flush=True)
                return 1
            if time.monotonic() >= end:
                break
    print(", ".join(f"{fuzzer.name}: {turns[fuzzer.name] * fuzzer.count:,} cases" for fuzzer in FUZZERS))
    return 0


def _turn(fuzzer: Fuzzer, first: int) -> tuple[str, bool]:
    """What one turn said, and whether it found something."""
    with tempfile.TemporaryDirectory(prefix="hxfuzz-") as folder:
        arguments = [folder] if fuzzer.in_folder else []
        try:
            done = subprocess.run(
                [sys.executable, "-m", fuzzer.module, *arguments, str(first), str(fuzzer.count)],
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=fuzzer.seconds,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            return (
                f"{(error.stdout or b'').decode(errors='replace')}\nit hangs: {fuzzer.seconds:.0f} s were not enough",
                True,
            )
    return done.stdout.decode(errors="replace"), done.returncode != 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Run every fuzzer in turn.")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    sys.exit(run(asked.minutes, asked.seed))
