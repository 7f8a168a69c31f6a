from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

# Tiny models and their tokenizer are the engine tests' own.
sys.path.append(str(Path(__file__).parents[1] / "engine"))


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
