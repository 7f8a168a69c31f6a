"""A worker says what its answers depend on, and works before its digests are read and although they cannot be had."""

from __future__ import annotations

import pytest

from helix_jobs._version import __version__
from helix_jobs.engine.fake_engine import FakeEngine
from helix_jobs.engine.loading import model_digest
from helix_jobs.engine.loading.model_digest import ServedDigests
from helix_jobs.errors import DatabaseUnreachableError
from helix_jobs.settings import Settings
from helix_jobs.worker.model_digests import ModelDigests
from helix_jobs.worker.setup import NOT_READ, worker_setup


def _settings(home, **values):
    return Settings.from_environment({"HELIX_HOME": str(home), **values})


def test_it_says_versions_models_and_how_they_compute(tmp_path):
    info = FakeEngine(max_batch_size=4).info
    found = worker_setup(_settings(tmp_path, HELIX_ENGINE="fake"), info)
    assert found["helix"] == __version__
    assert found["target"] == {"name": "fake-target"}
    assert (found["dtype"], found["kernels"], found["speculation_depth"]) == ("float32", "torch", "auto")
    assert {"torch", "transformers"} <= set(found["libraries"])
    assert "adapters" not in found
    assert "digests" not in found


def test_digests_are_read_once_and_written_until_the_database_takes_them(tmp_path, monkeypatch):
    read, written = [], []

    def served(settings, on_progress):
        read.append(settings)
        return ServedDigests(target="ab", adapters={"pirate": "cd"})

    def describe(setup):
        written.append(setup)
        if len(written) == 1:
            raise DatabaseUnreachableError("the database does not answer")

    monkeypatch.setattr(model_digest, "served_digests", served)
    settings = _settings(tmp_path)
    setup = worker_setup(settings, FakeEngine().info)
    assert setup["digests"] == NOT_READ
    digests = ModelDigests(settings, setup, describe)
    with pytest.raises(DatabaseUnreachableError):
        digests.look()
    digests.look()
    digests.look()
    assert len(read) == 1
    assert len(written) == 2
    assert written[1]["target"] == {"name": "fake-target", "digest": "ab"}
    assert written[1]["adapters"] == {"pirate": "cd"}
    assert "digests" not in written[1]
    assert written[1]["draft"] == setup["draft"]


def test_an_engine_without_files_has_no_digests_to_read(tmp_path):
    settings = _settings(tmp_path, HELIX_ENGINE="fake")
    written = []
    ModelDigests(settings, worker_setup(settings, FakeEngine().info), written.append).look()
    assert written == []


def test_a_model_that_is_gone_costs_the_digest_alone(tmp_path, caplog):
    gone = _settings(tmp_path, HELIX_TARGET_MODEL=str(tmp_path / "gone"), HELIX_DRAFT_MODEL="none")
    written = []
    ModelDigests(gone, worker_setup(gone, FakeEngine().info), written.append).look()
    (found,) = written
    assert found["target"] == {"name": "fake-target"}
    assert "could not be read" in found["digests"]
    assert "manifests will lack the digests" in caplog.text
