"""A worker that rests says so to commands, and only as long as its process lives."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from helix_jobs.storage.process_identity import UNKNOWN_START, here, this_process
from helix_jobs.worker.rest import Rest
from helix_jobs.worker.rest_sign import FRESH_SECONDS, RestBoard, rest_signs

if TYPE_CHECKING:
    from pathlib import Path

DATABASE = "postgresql://helix:***@box/helix"
NIGHT = Rest("outside its hours (HELIX_HOURS)", datetime(2026, 11, 30, 22, 0, tzinfo=UTC))


def test_a_sign_tells_who_rests_why_and_until_when(tmp_path: Path) -> None:
    board = RestBoard(tmp_path, "cuda:0", DATABASE)
    assert rest_signs(tmp_path, DATABASE) == []
    board.show(NIGHT)
    (sign,) = rest_signs(tmp_path, DATABASE)
    assert (sign.device, sign.why, sign.until) == ("cuda:0", NIGHT.why, NIGHT.until)
    assert sign.process == this_process()
    board.show(Rest("somebody else has the device", None))
    (sign,) = rest_signs(tmp_path, DATABASE)
    assert (sign.why, sign.until) == ("somebody else has the device", None)
    board.clear()
    board.clear()
    assert rest_signs(tmp_path, DATABASE) == []
    assert not list(tmp_path.iterdir())


def test_a_worker_of_another_database_is_not_told(tmp_path: Path) -> None:
    RestBoard(tmp_path, "cpu", "sqlite:////elsewhere/helix.db").show(NIGHT)
    assert rest_signs(tmp_path, DATABASE) == []


def test_two_workers_have_a_sign_each(tmp_path: Path) -> None:
    for device in ("cuda:0", "cuda:1"):
        RestBoard(tmp_path, device, DATABASE).show(NIGHT)
    assert {sign.device for sign in rest_signs(tmp_path, DATABASE)} == {"cuda:0", "cuda:1"}


def test_the_sign_of_a_killed_worker_is_removed(tmp_path: Path) -> None:
    RestBoard(tmp_path, "cpu", DATABASE).show(NIGHT)
    now = here()
    assert len(rest_signs(tmp_path, DATABASE, replace(now, started=lambda _: UNKNOWN_START))) == 1
    assert rest_signs(tmp_path, DATABASE, replace(now, started=lambda _: None)) == []
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("which", ["boot_id", "pid_namespace"])
def test_a_sign_from_before_the_boot_or_of_a_container_that_was_killed_is_removed(tmp_path: Path, which: str) -> None:
    """Its process cannot be seen; but nobody keeps it fresh."""
    RestBoard(tmp_path, "cpu", DATABASE).show(NIGHT)
    elsewhere = replace(here(), **{which: "another"})
    assert len(rest_signs(tmp_path, DATABASE, elsewhere)) == 1
    (path,) = tmp_path.iterdir()
    old = time.time() - FRESH_SECONDS - 1
    os.utime(path, (old, old))
    assert rest_signs(tmp_path, DATABASE, elsewhere) == []
    assert not list(tmp_path.iterdir())


def test_a_sign_is_kept_fresh_while_the_rest_lasts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    board = RestBoard(tmp_path, "cpu", DATABASE)
    board.show(NIGHT)
    (path,) = tmp_path.iterdir()
    for seconds, is_new in ((1, False), (FRESH_SECONDS / 2, True)):
        clock[0] += seconds
        os.utime(path, (1, 1))
        board.show(NIGHT)
        assert (path.stat().st_mtime > 1) is is_new


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"until": 3}'])
def test_what_is_no_sign_is_passed_over(tmp_path: Path, content: str) -> None:
    RestBoard(tmp_path, "cpu", DATABASE).show(NIGHT)
    (tmp_path / "resting-1-x.json").write_text(content)
    (tmp_path / "resting-2-x.json").mkdir()
    (tmp_path / "resting-3-x.json").symlink_to(tmp_path / "resting-1-x.json")
    assert len(rest_signs(tmp_path, DATABASE)) == 1


def test_what_a_sign_lacks_is_noticed(tmp_path: Path) -> None:
    RestBoard(tmp_path, "cpu", DATABASE).show(NIGHT)
    (path,) = tmp_path.iterdir()
    whole = json.loads(path.read_text())
    for name in whole:
        path.write_text(json.dumps({key: value for key, value in whole.items() if key != name}))
        assert rest_signs(tmp_path, DATABASE) == [], name


def test_a_directory_that_takes_no_file_keeps_no_worker_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    board = RestBoard(tmp_path / "gone", "cpu", DATABASE)
    board.show(NIGHT)
    board.clear()
    assert "commands cannot see that this worker rests" in caplog.text
