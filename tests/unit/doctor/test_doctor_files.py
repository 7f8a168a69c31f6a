"""What doctor says of files: home, the disk it is on, and models."""

from __future__ import annotations

import dataclasses
import errno
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from helix_jobs.doctor import disk, home, housekeeping
from helix_jobs.doctor import models as doctor_models
from helix_jobs.doctor.disk import check_room, is_network, judge_room
from helix_jobs.doctor.home import check_home
from helix_jobs.doctor.model_report import Place
from helix_jobs.doctor.models import check_models
from helix_jobs.wording import rough_size
from tests.unit.doctor.verdicts import FAILED, OK, WARNING, levels, only
from tests.unit.engine.model_files import edit_config, save_checkpoint

# home and disk


def test_a_home_that_is_not_there_yet_is_fine_and_stays_away(settings):
    verdicts = check_home(settings)
    assert set(levels(verdicts).values()) == {OK}
    assert not settings.home.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="modes of POSIX")
@pytest.mark.parametrize(("mode", "level"), [(0o700, OK), (0o755, WARNING), (0o710, WARNING)])
def test_a_home_others_may_look_into(settings, mode, level):
    settings.home.mkdir()
    settings.home.chmod(mode)
    verdicts = check_home(settings)
    found = only(verdicts, "home")
    assert found.level is level
    assert f"mode {mode:04o}" in found.finding
    assert found.remedy == (None if level is OK else f"chmod 700 {settings.home}")
    assert only(verdicts, "clock, files").level is OK
    assert list(settings.home.iterdir()) == []


def test_a_home_that_is_a_file_or_cannot_be_written(settings, monkeypatch):
    settings.home.write_text("")
    assert only(check_home(settings), "home").level is FAILED
    settings.home.unlink()
    monkeypatch.setattr(home.os, "access", lambda *_: False)
    assert "cannot be made" in only(check_home(settings), "home").finding
    settings.home.mkdir()
    assert "may not be read or written" in only(check_home(settings), "home").finding


def test_a_disk_that_takes_no_file_ends_no_other_check(settings, monkeypatch):
    def full(**_):
        raise OSError(errno.ENOSPC, "No space left on device")

    settings.make_home()
    monkeypatch.setattr(home.tempfile, "TemporaryFile", full)
    verdicts = check_home(settings)
    found = only(verdicts, "home, writes")
    assert (found.level, "cannot be written" in found.finding) == (FAILED, True)
    assert found.finding.endswith("No space left on device")
    assert {"home", "home, disk", "home, files"} <= set(levels(verdicts))


def test_files_that_cannot_be_looked_at_end_no_other_check(settings, monkeypatch):
    def forbidden(_):
        raise PermissionError(errno.EACCES, "Permission denied", "/somewhere/native")

    settings.make_home()
    monkeypatch.setattr(housekeeping, "home_files", forbidden)
    verdicts = check_home(settings)
    found = only(verdicts, "home, files")
    assert (found.level, found.finding) == (FAILED, "cannot be looked at: /somewhere/native: Permission denied")
    assert only(verdicts, "clock, files").level is OK


@pytest.mark.parametrize(("free", "level"), [(100 << 20, FAILED), (1 << 30, WARNING), (2 << 30, OK), (1 << 40, OK)])
def test_room_on_a_disk(free, level):
    found = judge_room("home, disk", free, Path("/x"))
    assert found.level is level
    assert rough_size(free) in found.finding
    assert bool(found.remedy) is (level is not OK)


def test_the_disk_of_a_path_that_is_not_there_yet(tmp_path):
    assert "free for" in check_room("disk", tmp_path / "a" / "b").finding


def test_network_file_systems(monkeypatch, tmp_path):
    assert not is_network(disk.file_system(tmp_path))
    assert [is_network(kind) for kind in ("nfs4", "cifs", "smb3", "fuse.sshfs", "ext4", "apfs", "ntfs", None)] == [
        *[True] * 4,
        *[False] * 4,
    ]
    mounts = [("/", "ext4"), (str(tmp_path.parent), "NFS4"), (str(tmp_path / "other"), "ext4")]
    partition = namedtuple("Partition", "mountpoint fstype")  # noqa: PYI024  (psutil's is one)
    monkeypatch.setattr(disk.psutil, "disk_partitions", lambda **_: [partition(*mount) for mount in mounts])
    assert disk.file_system(tmp_path / "helix.db") == "nfs4"


# models


@pytest.mark.demo
def test_models_that_are_here(demo_home, settings):
    settings = dataclasses.replace(settings, home=demo_home)
    target, draft, memory = check_models(settings)
    assert (target.subject, target.level) == ("target model", OK)
    assert "135 million parameters" in target.finding
    assert draft.finding == "lookup+int8: nothing to download"
    assert (memory.subject, memory.level) == ("models, memory", OK)
    assert "sequences of the longest" in memory.finding
    both = check_models(dataclasses.replace(settings, draft_model="lookup+demo"))
    assert [verdict.level for verdict in both] == [OK, OK, OK]


def test_models_that_are_not(settings, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    target, draft = check_models(dataclasses.replace(settings, draft_model="nobody/no-such-model"))
    assert (target.level, "downloads it (93 MB)" in target.finding) == (WARNING, True)
    assert (draft.level, "nobody/no-such-model is not on this machine" in draft.finding) == (WARNING, True)
    assert not settings.home.exists()
    (tmp_path / "model").mkdir()
    for name, words in (
        ("./nowhere", "does not exist"),
        (str(tmp_path / "model"), "no config.json"),
        ("models--Qwen--Qwen2.5-0.5B", "no name on the hub"),
    ):
        found = only(check_models(dataclasses.replace(settings, target_model=name)), "target model")
        assert (found.level, words in found.finding) == (FAILED, True)
    assert only(check_models(dataclasses.replace(settings, draft_model="lookup+")), "draft model").level is FAILED


@pytest.mark.parametrize(
    ("free", "expected"),
    [
        (10**10, (OK, "8 sequences of the longest")),
        (10**6, (WARNING, "0 sequences of the longest")),
        (1, (FAILED, "the models need 0.00 GB")),
    ],
)
def test_models_are_compared_with_the_free_memory(settings, monkeypatch, tmp_path, free, expected):
    level, words = expected
    folder = edit_config(save_checkpoint(tmp_path / "m"), max_position_embeddings=4096)
    monkeypatch.setattr(doctor_models, "examine", lambda _: Place(torch.device("cpu"), "CPU", free))
    settings = dataclasses.replace(
        settings, target_model=str(folder), draft_model="none", dtype="float32", kv_cache_mb=9 if free > 10**6 else None
    )
    target, draft, memory = check_models(settings)
    assert (target.level, draft.level) == (OK, OK)
    assert (memory.subject, memory.level) == ("models, memory", level)
    assert words in memory.finding
    assert (memory.remedy is None) is (level is OK)


def test_a_model_whose_configuration_is_refused_fails_the_check_of_memory(settings, tmp_path):
    folder = edit_config(save_checkpoint(tmp_path / "m"), is_causal=False)
    *_, memory = check_models(dataclasses.replace(settings, target_model=str(folder), draft_model="none"))
    assert (memory.subject, memory.level) == ("models, memory", FAILED)
    assert "attends in both directions" in memory.finding


def test_the_fake_engine_needs_no_models(settings, monkeypatch):
    monkeypatch.setattr(doctor_models, "find_local_checkpoint", None)
    (found,) = check_models(dataclasses.replace(settings, engine="fake"))
    assert found.level is OK
