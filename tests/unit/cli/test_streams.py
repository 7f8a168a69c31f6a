"""Commands with closed streams, on terminals without colour, with arguments and variables nobody meant."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from helix_jobs.cli.environment import misspelt_settings
from helix_jobs.cli.group import print_error
from tests.worker_box import ROOT

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="a POSIX shell")


def shell(tmp_path, line, **environment):
    """Run a line with ``$HELIX`` in it; standard input is closed unless the line says otherwise."""
    there = {"HELIX": f"{sys.executable} -W error {ROOT / 'submit.py'}", "HELIX_HOME": str(tmp_path / "home")}
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HELIX_")}
    return subprocess.run(
        ["/bin/sh", "-c", line], env=clean | there | environment, cwd=tmp_path, capture_output=True, text=True,
        check=False, timeout=60,
    )  # fmt: skip


@pytest.mark.thorough(fast=3)
@POSIX
@pytest.mark.parametrize(
    ("line", "code", "told"),
    [
        ("$HELIX submit - <&-", 2, "standard input is closed; name a file of prompts"),
        ("$HELIX list --json >&-", 2, "standard output is closed; send it to a file, to a pipe or to /dev/null"),
        ("$HELIX status >&-", 2, "standard output is closed"),
        ("$HELIX results b-nope >&- <&-", 2, "standard output is closed"),
        ("$HELIX list 2>&- <&-", 0, ""),
    ],
)
def test_a_closed_stream_is_said_in_one_line(tmp_path, line, code, told):
    done = shell(tmp_path, line)
    assert done.returncode == code
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 1


@pytest.mark.thorough
@POSIX
def test_what_was_closed_is_not_given_to_the_database(tmp_path):
    """The next file that is opened would get the number, and a library's words would go into it."""
    (tmp_path / "one.jsonl").write_text('{"prompt": "x"}\n')
    done = shell(tmp_path, "$HELIX submit one.jsonl 2>&- <&- && $HELIX status")
    assert done.returncode == 0
    assert "1 queued" in done.stdout or "0/1" in done.stdout


@pytest.mark.thorough
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")  # noqa: PTH110  (a device)
def test_an_output_that_takes_no_more_is_one_fault_with_one_code(tmp_path):
    (tmp_path / "one.jsonl").write_text('{"prompt": "x"}\n')
    made = shell(tmp_path, "batch=$($HELIX submit one.jsonl 2> words) && $HELIX cancel $batch && echo $batch")
    batch = made.stdout.split()[-1]
    results = f"$HELIX results {batch} --failed"
    lines = [f"{results} -o /dev/full --format jsonl", f"{results} -o /dev/stdout --format csv > /dev/full"]
    lines += [f"{results} > /dev/full", "$HELIX list --json > /dev/full", "$HELIX --help > /dev/full"]
    lines += ["$HELIX results --help > /dev/full", "$HELIX status > /dev/full"]
    for line in lines:
        done = shell(tmp_path, line)
        (told,) = done.stderr.splitlines()
        assert (done.returncode, done.stdout) == (2, ""), line
        assert told.startswith("Error: ")
        assert "cannot be written: No space left on device; free some space there, or choose another place" in told


@pytest.mark.thorough
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")  # noqa: PTH110  (a device)
def test_words_that_find_no_room_do_not_end_a_command(tmp_path):
    (tmp_path / "one.jsonl").write_text('{"prompt": "x"}\n')
    done = shell(tmp_path, "$HELIX submit one.jsonl 2> /dev/full && $HELIX list 2> /dev/full")
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 queued" in done.stdout or "0/1" in done.stdout
    assert shell(tmp_path, "$HELIX status b-nope 2> /dev/full").returncode == 2


def test_no_color_is_obeyed(monkeypatch, capsys):
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr("click.utils.should_strip_ansi", lambda _stream, color: color is False)
    print_error("wrong")
    assert capsys.readouterr().err == "Error: wrong\n"
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    print_error("wrong")
    assert "\x1b[31m" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["cancel", "9223372036854775808"], "there is no job 9223372036854775808"),
        (["cancel", "1" * 5000], "there is no"),
        (["cancel", "\N{ARABIC-INDIC DIGIT THREE}"], "there is no batch"),
        (["list", "--limit", str(10**30)], "is not in the range"),
        (["status", "\udce9"], "holds bytes that are not UTF-8"),
        (["submit", "FILE", "--stop", "half \ud83d"], "holds bytes that are not UTF-8"),
        (["submit", "FILE", "--name", "half \ud83d"], "holds bytes that are not UTF-8"),
    ],
)
def test_arguments_nobody_meant_are_refused_in_words(helix, prompts, arguments, told):
    result = helix(*[str(prompts(1)) if argument == "FILE" else argument for argument in arguments])
    assert result.exit_code == 2
    assert told in result.stderr


@POSIX
def test_an_unknown_home_directory_is_named(helix):
    result = helix("list", env={"HELIX_HOME": "~nosuchuser/x"})
    assert result.exit_code == 2
    assert "HELIX_HOME is '~nosuchuser/x'" in result.stderr
    assert "give a full path" in result.stderr


@POSIX
def test_a_refusal_of_the_system_comes_with_file_and_remedy(helix, monkeypatch):
    def refused(*_, **__):
        raise PermissionError(13, "Permission denied", "/srv/helix.db")

    monkeypatch.setattr("helix_jobs.client.client.HelixClient.list", refused)
    told = helix("list").stderr
    assert told.startswith("Error: Permission denied: /srv/helix.db; correct the permissions")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (
            "HELIX_MAX_BATCH",
            "HELIX_MAX_BATCH is no setting of Helix and is ignored; did you mean HELIX_MAX_BATCH_SIZE?",
        ),
        ("HELIX_TARGET_MODLE", "did you mean HELIX_TARGET_MODEL?"),
        ("HELIX_MAX_TOKEN", "did you mean HELIX_MAX_TOKENS?"),
        ("HELIX_IGNORE_EOS", "HELIX_IGNORE_EOS is no setting of Helix and is ignored"),  # the flag reads no variable
        ("HELIX_XYZZY", "HELIX_XYZZY is no setting of Helix and is ignored"),
    ],
)
def test_a_misspelt_variable_is_told(helix, name, told):
    result = helix("list", env={name: "1"})
    assert result.exit_code == 0
    assert re.search(f"{re.escape(told)}$", result.stderr, re.MULTILINE)


def test_variables_of_others_are_left_alone():
    others = {"HELIX_RUNTIME": "/x", "HELIX_FAKE_DIE": "x", "HELIX_HOME": "x", "HELIX_TOP_K": "1", "HELIX_HMOE": " "}
    assert misspelt_settings(others, ["HELIX_TOP_K"]) == []
