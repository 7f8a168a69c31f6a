"""Names, ids, file names and answers of others cannot forge what a person reads."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from helix_jobs.plain_text import escape_in_json, paragraphs, printable, shorten
from tests.worker_box import ROOT

FORGED = "b-20260101-aaaaaa  done  3/3"
# A line end of every kind, a bidirectional override, zero-width characters, C0, C1, DEL.
TRICKS = ["\n", "\r", "\x85", "\N{LINE SEPARATOR}", "\N{PARAGRAPH SEPARATOR}", "\v", "\f", "\x1e"]
TRICKS += ["\N{RIGHT-TO-LEFT OVERRIDE}", "\N{ZERO WIDTH SPACE}", "\N{ZERO WIDTH JOINER}", "\N{WORD JOINER}"]
TRICKS += ["\N{ZERO WIDTH NO-BREAK SPACE}", "\N{SOFT HYPHEN}", "\x1b[2J", "\x9b2J", "\x7f"]


@pytest.fixture(params=TRICKS, ids=ascii)
def name(request):
    return f"mine{request.param}{FORGED}"


def assert_plain(text):
    """Nothing but line feeds and what can be seen."""
    assert all(line.isprintable() for line in text.removesuffix("\n").split("\n")), ascii(text)


def test_a_name_stays_one_line_of_what_can_be_seen(name):
    assert printable(name).isprintable()
    assert printable("zwölf 中文 \N{GRINNING FACE}") == "zwölf 中文 \N{GRINNING FACE}"


@pytest.mark.thorough(fast=3)
def test_lists_and_facts_cannot_be_forged(helix, prompts, name):
    path = prompts(lines=[json.dumps({"prompt": "x", "custom_id": name})])
    batch = helix("submit", path, "--name", name, "--metadata", f"k={name}").stdout.strip()
    for arguments in (["list"], ["status"], ["status", batch], ["status", batch, "--jobs"]):
        told = helix(*arguments).stdout
        assert_plain(told)
        assert not [line for line in told.splitlines() if line.startswith(FORGED)]


@pytest.mark.thorough(fast=9)
def test_answers_cannot_be_forged(helix, prompts, finish, name):
    batch = helix("submit", prompts(lines=[json.dumps({"prompt": name, "custom_id": name})])).stdout.strip()
    finish(batch, succeeded=1, text=f"an answer {name}")
    told = helix("results", batch, "--format", "text").stdout
    if "\N{ZERO WIDTH JOINER}" not in name:  # joins emoji in answers
        assert_plain(told)
    heads = [line for line in told.splitlines() if not line.startswith("   ") and line]
    assert len(heads) == 1


@pytest.mark.thorough(fast=4)
@pytest.mark.skipif(sys.platform == "win32", reason="file names of POSIX")
def test_the_input_files_name_cannot_be_forged(helix, tmp_path, name):
    path = tmp_path / f"{name.replace('/', '-')}.jsonl"
    path.write_text('{"prompt": "x"}\n{"prompt": ""}\n', encoding="utf-8")
    refused = helix("submit", path)
    stored = helix("submit", path, "--skip-invalid")
    assert (refused.exit_code, stored.exit_code) == (2, 0)
    for told in (refused.output, stored.output, helix("list").stdout, helix("status").stdout):
        assert_plain(told)
        assert not [line for line in told.splitlines() if line.startswith(FORGED)]


def test_answers_keep_their_paragraphs_and_their_emoji():
    family = "\N{MAN}\N{ZERO WIDTH JOINER}\N{WOMAN}"
    assert paragraphs(f"one\n\ttwo {family}") == f"one\n\ttwo {family}"
    assert shorten(f"one\n\ttwo {family}", 40) == f"one two {family}"


def test_json_for_a_terminal_means_the_same(name):
    text = json.dumps({"name": name}, ensure_ascii=False, indent=2)
    assert json.loads(escape_in_json(text)) == {"name": name}
    assert_plain(escape_in_json(text))
    assert escape_in_json('"zwölf"') == '"zwölf"'


@pytest.mark.thorough(fast=1)
@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals of POSIX")
@pytest.mark.parametrize("arguments", [["--json"], ["--format", "jsonl"], ["--format", "csv"], ["--format", "openai"]])
def test_on_a_terminal_no_format_drives_it(helix, prompts, finish, arguments):
    text = "answer \x1b]0;x\x07 \x9b2J \x7f \N{RIGHT-TO-LEFT OVERRIDE} ü"
    batch = helix("submit", prompts(1)).stdout.strip()
    finish(batch, succeeded=1, text=text)
    shown = on_a_terminal("results", batch, *arguments)
    assert_plain(shown.replace("\r\n", "\n"))
    assert "ü" in shown
    assert text in helix("results", batch, "--format", "csv").stdout


def on_a_terminal(*arguments):
    """What a command writes to a pseudo-terminal."""
    ours, theirs = os.openpty()
    with subprocess.Popen(
        [sys.executable, str(ROOT / "submit.py"), *arguments], stdout=theirs, stderr=subprocess.STDOUT
    ) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                piece = os.read(ours, 65_536)
            except OSError:  # the other end is closed
                break
            if not piece:
                break
            shown += piece
        assert process.wait(30) == 0
    os.close(ours)
    return shown.decode()
