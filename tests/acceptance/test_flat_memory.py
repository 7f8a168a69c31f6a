"""Thousands of short requests leave the engine's memory where it was once everything bounded has filled up.

What is held apart here is torch's, not the engine's: oneDNN compiles a kernel for each number of rows a linear layer
ever sees and keeps the latest 1,024, which for these tiny layers alone is hundreds of megabytes and takes more than ten
thousand requests to fill up. So the requests go through a process of its own that keeps few of them.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys

import pytest

from tests.worker_box import ROOT

FEW_KERNELS = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16", "LRU_CACHE_CAPACITY": "16"}

# Resident memory may grow by so much: a heap that holds the same still moves by some pages. It is less than what 400
# bytes a request leave behind in 2,000 requests, or 70 in 10,000.
MAX_BYTES = 600_000
# Objects that refer to others may grow by so many: what the prefix cache and finished outputs hold varies.
MAX_OBJECTS = 200


@functools.cache
def gained(num_requests):
    """What the last nine tenths of the requests left behind, and what some more did that leak."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.acceptance.flat_memory_run", str(num_requests)],
        env={**os.environ, **FEW_KERNELS, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.thorough
@pytest.mark.parametrize("num_requests", [2000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_memory_stays_flat(num_requests):
    gain = gained(num_requests)["sound"]
    assert gain["bytes"] < MAX_BYTES
    assert gain["objects"] < MAX_OBJECTS


@pytest.mark.thorough
def test_a_leak_is_seen():
    """The control: nobody is told that a sequence has ended."""
    gain = gained(2000)["leaking"]
    assert gain["bytes"] > MAX_BYTES
    assert gain["objects"] > MAX_OBJECTS
