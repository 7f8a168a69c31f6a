"""Compiled kernels of both dtypes, for heads of 16."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from helix_jobs.engine.kernels.cpu.kernels import NativeKernels, load_kernels
from tests.unit.engine.tiny_models import CPU

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def folder(compiled_folder: Path) -> Path:
    return compiled_folder


@pytest.fixture(scope="module", params=(torch.float32, torch.bfloat16), ids=("float32", "bfloat16"))
def kernels(request, folder) -> tuple[NativeKernels, torch.dtype]:
    return load_kernels(folder, request.param, CPU, 16), request.param
