"""The systemd units in docs are such as systemd takes, and say what docs/supervision.md explains."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from helix_jobs.api import ending, server
from helix_jobs.cli.group import cli
from helix_jobs.settings import Settings
from helix_jobs.worker import ending as worker_ending
from helix_jobs.worker.shutdown import EXIT_INTERRUPTED

DOCS = Path(__file__).parents[2] / "docs"
UNIT = DOCS / "helix-worker.service"
SERVER = DOCS / "helix-server.service"
TEXT = (DOCS / "supervision.md").read_text(encoding="utf-8")


def read(path):
    parser = configparser.ConfigParser(interpolation=None, delimiters=("=",), strict=False)
    parser.optionxform = str
    parser.read_string(path.read_text(encoding="utf-8"))
    return parser


@pytest.fixture
def unit():
    return read(UNIT)


@pytest.mark.parametrize("path", [UNIT, SERVER], ids=["worker", "server"])
def test_systemd_takes_the_unit(path, tmp_path):
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("no systemd here")
    there = path.read_text(encoding="utf-8").replace("/opt/helix/.venv/bin/helix", sys.executable)
    # Users and files of a machine that has Helix installed.
    there = re.sub(r"^(User|Group)=helix$", r"\1=root", there, flags=re.MULTILINE)
    copy = tmp_path / path.name
    copy.write_text(there, encoding="utf-8")
    done = subprocess.run([program, "verify", "--man=no", str(copy)], capture_output=True, text=True, check=False)
    complaints = [line for line in done.stderr.splitlines() if path.name in line]
    assert not complaints
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", [UNIT, SERVER], ids=["worker", "server"])
def test_what_it_starts_exists(path):
    program, name, *options = read(path)["Service"]["ExecStart"].split()
    assert program.endswith("/helix")
    command = cli.get_command(click.Context(cli), name)
    known = {option for parameter in command.params for option in parameter.opts}
    assert {option for option in options if option.startswith("--")} <= known


def test_it_restarts_by_exit_code(unit):
    service = unit["Service"]
    assert (service["Restart"], service["RestartPreventExitStatus"]) == ("on-failure", "2")
    assert service["SuccessExitStatus"] == str(EXIT_INTERRUPTED)
    assert service["KillMode"] == "mixed", "the embedded broker must outlive the draining"


def test_it_waits_longer_than_stopping_takes(unit):
    grace = Settings.from_environment({}).shutdown_grace
    assert f"HELIX_SHUTDOWN_GRACE={grace:.0f}" in unit["Service"]["Environment"]
    longest = grace + worker_ending.HAND_BACK_SECONDS + worker_ending.HARD_EXIT_SECONDS
    assert float(unit["Service"]["TimeoutStopSec"]) > longest
    assert f"Give it {unit['Service']['TimeoutStopSec']} s" in TEXT


def test_a_server_is_left_the_time_to_tell_its_clients():
    service = read(SERVER)["Service"]
    assert float(service["TimeoutStopSec"]) > server.GRACE_SECONDS > ending.PATIENCE_SECONDS
    assert f"It gives open ones {ending.PATIENCE_SECONDS:.0f} seconds" in TEXT
    assert (service["Restart"], service["RestartPreventExitStatus"]) == ("on-failure", "2")


def test_every_exit_code_is_explained():
    codes = {row.strip() for row in re.findall(r"^\| (\w+) \|", TEXT, re.MULTILINE)} - {"Code"}
    assert codes == {"0", "1", "2", "3", "130", "killed"}


def test_its_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)", TEXT):
        assert target.startswith("https://") or (DOCS / target).exists(), target
