from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from helix_jobs.engine.kernels.cpu.build import build_libraries
from helix_jobs.errors import ConfigurationError
from helix_jobs.locks import FileLock
from tests.unit.engine.tried_tokenizers import _tokenizers_tried_once
from tests.unit.one_thread import _one_thread

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["_one_thread", "_tokenizers_tried_once"]


@pytest.fixture(autouse=True)
def _same_numbers_in_any_order():
    """A test's random tensors do not depend on which tests ran before it in the same process."""
    torch.default_generator.manual_seed(0)  # manual_seed seeds other devices too, and keeps its callers for each


@pytest.fixture(scope="session")
def compiled_folder(kernels_folder: Path) -> Path:
    """Where compiled kernels are kept between runs of the tests; those for heads of 16 are there."""
    try:
        with FileLock(kernels_folder / "tests.lock"):  # the processes of a run need them at once; one of them compiles
            build_libraries(kernels_folder, 16)
    except ConfigurationError as error:
        pytest.skip(str(error))
    return kernels_folder
