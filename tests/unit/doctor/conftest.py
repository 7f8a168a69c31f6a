"""Machines to examine, simulated where that is needed, and an installation of which nothing is there yet."""

from __future__ import annotations

import sys
import types

import pytest
import torch

from helix_jobs.settings import Settings
from tests.unit.one_thread import _one_thread

__all__ = ["_one_thread"]


@pytest.fixture
def settings(tmp_path):
    return Settings.from_environment({"HELIX_HOME": str(tmp_path / "home")})


@pytest.fixture
def bare_machine(monkeypatch):
    """A machine with nothing but a CPU, whatever the tests really run on."""
    monkeypatch.setitem(sys.modules, "torch_directml", None)
    for backend in (torch.cuda, torch.xpu, torch.backends.mps):
        monkeypatch.setattr(backend, "is_available", lambda: False)


@pytest.fixture
def directml(bare_machine, monkeypatch):
    """torch_directml as its API is, with one card."""
    module = types.ModuleType("torch_directml")
    module.is_available = lambda: True
    module.device_count = lambda: 1
    module.device = lambda index=0: torch.device("privateuseone", index)
    module.device_name = lambda index: f"Radeon {index}"
    monkeypatch.setitem(sys.modules, "torch_directml", module)
