"""Processes of a bench: they are measured, so they never rest."""

from __future__ import annotations

from contextlib import ExitStack
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from helix_jobs.bench import processes
from helix_jobs.bench.processes import start_process
from helix_jobs.errors import HelixError
from helix_jobs.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path


def test_a_worker_that_is_measured_rests_neither_by_the_clock_nor_for_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user's own worker may."""
    given: dict[str, str] = {}

    def popen(*_: object, env: dict[str, str], **__: object) -> Any:
        given.update(env)
        return SimpleNamespace(poll=lambda: 1, terminate=lambda: None, wait=lambda *_: 1)

    monkeypatch.setattr(processes.subprocess, "Popen", popen)
    settings = Settings.from_environment(
        {"HELIX_HOME": str(tmp_path), "HELIX_HOURS": "22:00-07:00", "HELIX_YIELD_WHEN": "load>50%", "HELIX_SEED": "1"}
    )
    with ExitStack() as stack, pytest.raises(HelixError, match="did not start"):
        start_process(stack, settings, "worker", "Ready.", tmp_path)
    assert given["HELIX_HOME"] == str(tmp_path)
    assert (given["HELIX_HOURS"], given["HELIX_YIELD_WHEN"]) == ("", "")
