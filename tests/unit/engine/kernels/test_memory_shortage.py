"""A kernel without memory raises the error that the engine recovers from, and computes again once there is some."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from helix_jobs.engine.kernels.cpu.build import processor_features

if TYPE_CHECKING:
    from collections.abc import Sequence

_PROGRAM: Final = Path(__file__).with_name("short_of_memory.py")
_KERNELS: Final = ("attention", "attention_of_int8", "experts", "int8_layers", "int8_attention", "int8_linear")


def run(folder: Path, names: Sequence[str]) -> list[str]:
    # One arena: threads with their own would have memory in reserve.
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "2"}
    command = [sys.executable, str(_PROGRAM), str(folder), *names]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=environment)
    assert done.returncode == 0, (done.stdout, done.stderr)
    return done.stdout.splitlines()


@pytest.mark.thorough
@pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
def test_a_kernel_without_memory_raises_and_computes_again(compiled_folder: Path) -> None:
    features = processor_features().split()
    names = list(_KERNELS)
    names += ["tiled_linear"] if "amx_bf16" in features else []
    # With AVX512-BF16 alone it multiplies what it is given.
    names += ["packed_linear"] if "avx512_bf16" not in features or "amx_bf16" in features else []
    assert run(compiled_folder, names) == [f"{name}: True" for name in names]
