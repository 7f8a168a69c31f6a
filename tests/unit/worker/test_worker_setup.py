"""A worker says what its answers depend on, and works although a digest cannot be had."""

from __future__ import annotations

from helix_jobs._version import __version__
from helix_jobs.engine.fake_engine import FakeEngine
from helix_jobs.settings import Settings
from helix_jobs.worker.setup import worker_setup


def _settings(home, **values):
    return Settings.from_environment({"HELIX_HOME": str(home), **values})


def test_it_says_versions_models_and_how_they_compute(tmp_path):
    info = FakeEngine(max_batch_size=4).info
    found = worker_setup(_settings(tmp_path, HELIX_ENGINE="fake"), info, print)
    assert found["helix"] == __version__
    assert found["target"] == {"name": "fake-target"}
    assert (found["dtype"], found["kernels"], found["speculation_depth"]) == ("float32", "torch", "auto")
    assert {"torch", "transformers"} <= set(found["libraries"])
    assert "adapters" not in found


def test_a_model_that_is_gone_costs_the_digest_alone(tmp_path, caplog):
    info = FakeEngine().info
    gone = _settings(tmp_path, HELIX_TARGET_MODEL=str(tmp_path / "gone"), HELIX_DRAFT_MODEL="none")
    found = worker_setup(gone, info, print)
    assert found["target"] == {"name": "fake-target"}
    assert "manifests will lack the digests" in caplog.text
