"""Where the bad lines go: never through a link, never over the input, and to a place that can be named."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from helix_jobs.storage import batches
from tests.worker_box import ROOT

GOOD, BAD = '{"prompt": "fine"}', '{"prompt": ""}'


@pytest.fixture
def mixed(prompts):
    return prompts(lines=[GOOD, BAD])


def test_a_place_can_be_named(helix, mixed, tmp_path):
    result = helix("submit", mixed, "--skip-invalid", "--rejects", tmp_path / "bad.jsonl")
    assert result.exit_code == 0
    assert f"1 bad line skipped and written to {tmp_path / 'bad.jsonl'}" in result.stderr
    assert (tmp_path / "bad.jsonl").read_text() == f"{BAD}\n"
    assert not (tmp_path / "prompts.jsonl.invalid.jsonl").exists()
    assert "--rejects needs --skip-invalid" in helix("submit", mixed, "--rejects", "x").stderr


@pytest.mark.skipif(sys.platform == "win32", reason="links of POSIX")
def test_what_a_link_in_its_place_names_is_not_emptied(helix, mixed, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("mine")
    link = tmp_path / "prompts.jsonl.invalid.jsonl"
    link.symlink_to(elsewhere)
    result = helix("submit", mixed, "--skip-invalid")
    assert result.exit_code == 0
    assert elsewhere.read_text() == "mine"
    assert (link.is_symlink(), link.read_text()) == (False, f"{BAD}\n")


@pytest.mark.parametrize("how", ["itself", "link", "hard link"])
def test_the_input_is_never_written_over(helix, mixed, tmp_path, how):
    place = tmp_path / "place"
    if how == "link":
        place.symlink_to(mixed)
    elif how == "hard link":
        place.hardlink_to(mixed)
    else:
        place = mixed
    result = helix("submit", mixed, "--skip-invalid", "--rejects", place)
    assert mixed.read_text() == f"{GOOD}\n{BAD}\n"
    assert result.exit_code == 2
    assert "is the input itself; name another place for the bad lines" in result.stderr
    assert "No batches" in helix("list").stderr


@pytest.mark.skipif(sys.platform == "win32", reason="links of POSIX")
@pytest.mark.parametrize("source", ["notes", "notes/*.txt"])
def test_a_text_that_is_a_row_is_never_written_over(helix, tmp_path, source):
    (tmp_path / "notes").mkdir()
    for name in ("a.txt", "b.txt"):
        (tmp_path / "notes" / name).write_text(name)
    for number in range(20):  # in whatever order the folder gives them, some come before the text
        (tmp_path / "notes" / f"{number}.txt").symlink_to("nowhere")
    place = tmp_path / "notes" / "b.txt"
    result = helix("submit", tmp_path / source, "--prompt", "{{ txt }}", "--skip-invalid", "--rejects", place)
    assert place.read_text() == "b.txt"
    assert result.exit_code == 2
    assert "of the input; name another place for the bad lines" in result.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="modes of POSIX")
def test_the_mode_of_an_earlier_list_is_kept(helix, mixed, tmp_path):
    place = tmp_path / "prompts.jsonl.invalid.jsonl"
    place.write_text("earlier")
    place.chmod(0o600)
    helix("submit", mixed, "--skip-invalid")
    assert (place.read_text(), stat.S_IMODE(place.stat().st_mode)) == (f"{BAD}\n", 0o600)


def test_a_place_that_cannot_be_written_is_named_and_nothing_is_stored(helix, mixed, tmp_path):
    result = helix("submit", mixed, "--skip-invalid", "--rejects", tmp_path / "nowhere" / "x")
    assert result.exit_code == 2
    assert "nowhere/x cannot be written" in result.stderr
    assert "choose another place" in result.stderr
    assert "No batches" in helix("list").stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux's device that is full")
def test_a_place_that_is_full_only_at_its_end_leaves_nothing_stored(helix, mixed):
    result = helix("submit", mixed, "--skip-invalid", "--rejects", "/dev/full")
    assert result.exit_code == 2
    assert "the bad lines: /dev/full cannot be written: No space left on device; free some space" in result.stderr
    assert (result.stdout, result.stderr.count("stored")) == ("", 0)
    assert "No batches" in helix("list").stderr


def test_a_name_that_is_refused_at_the_end_leaves_nothing_stored(helix, mixed, tmp_path, monkeypatch):
    def refuse(path, target):
        raise PermissionError(errno.EACCES, "Permission denied", str(path), None, str(target))

    monkeypatch.setattr(Path, "replace", refuse)
    result = helix("submit", mixed, "--skip-invalid")
    assert result.exit_code == 2
    assert "prompts.jsonl.invalid.jsonl cannot be written: Permission denied; correct the permissions" in result.stderr
    assert "No batches" in helix("list").stderr
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [mixed.name]


@pytest.mark.skipif(sys.platform == "win32", reason="pipes of POSIX")
def test_a_reader_that_has_gone_leaves_nothing_stored(helix, mixed):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        result = helix("submit", mixed, "--skip-invalid", "--rejects", f"/dev/fd/{writer}")
    finally:
        os.close(writer)
    assert result.exit_code == 2
    assert f"/dev/fd/{writer} cannot be written (Broken pipe); name another place" in result.stderr
    assert "No batches" in helix("list").stderr


def test_the_bad_lines_are_in_their_place_before_the_jobs_come_into_being(helix, mixed, tmp_path, monkeypatch):
    seal_batch = batches.seal_batch

    def see(*arguments):
        place = tmp_path / "prompts.jsonl.invalid.jsonl"
        seen.append(place.read_text() if place.exists() else None)
        seal_batch(*arguments)

    seen = []
    monkeypatch.setattr(batches, "seal_batch", see)
    assert helix("submit", mixed, "--skip-invalid").exit_code == 0
    assert seen == [f"{BAD}\n"]


@pytest.mark.skipif(sys.platform == "win32", reason="process substitution")
def test_an_input_without_a_folder_has_its_list_in_the_working_directory(tmp_path):
    done = subprocess.run(
        [
            "/bin/bash",
            "-c",
            f"{sys.executable} {ROOT / 'submit.py'} submit <(printf '{GOOD}\\n{BAD}\\n') --skip-invalid",
        ],
        cwd=tmp_path,
        env={**os.environ, "HELIX_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "input.invalid.jsonl").read_text() == f"{BAD}\n"
