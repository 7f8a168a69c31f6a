"""The memory of recurrent states is reckoned before it is allocated."""

from __future__ import annotations

import pytest
import torch

from helix_jobs.engine.config import StateConfig
from helix_jobs.engine.recurrence.recurrence import StateShape
from helix_jobs.engine.recurrence.state_cache import StateCache, state_bytes

SHAPES = (StateShape(window=2, width=6), StateShape(window=3, width=5, matrix=(2, 3, 4)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "config",
    [StateConfig(num_slots=0), StateConfig(num_slots=1), StateConfig(num_slots=3, num_snapshots=2, num_drafts=4)],
)
def test_bytes_are_reckoned_as_they_are_allocated(config: StateConfig, dtype: torch.dtype) -> None:
    cache = StateCache(SHAPES, config, dtype, torch.device("cpu"))
    assert state_bytes(SHAPES, config, dtype.itemsize) == cache.num_bytes > 0
