"""Watching a batch: what is printed when, and with which exit code it ends."""

from __future__ import annotations

import json

import click
import pytest

from helix_jobs.cli.follow import follow_for_person
from helix_jobs.client.client import HelixClient


@pytest.mark.parametrize(("failed", "exit_code"), [(0, 0), (1, 1)])
def test_watch_ends_with_a_summary_and_the_exit_code(helix, submitted, finish, failed, exit_code):
    batch = submitted(2)
    finish(batch, succeeded=2 - failed, failed=failed)
    result = helix("watch", batch)
    assert result.exit_code == exit_code
    assert f"2 jobs: {2 - failed} succeeded" in result.stdout
    assert (f"results {batch} --failed" in result.stdout) == bool(failed)
    last = json.loads(helix("watch", batch, "--json").stdout.splitlines()[-1])
    assert (last["state"], set(last)) == ("done", set(json.loads(helix("status", batch, "--json").stdout)))


def test_watch_json_prints_a_line_at_each_change_only(helix, submitted, finish, monkeypatch):
    batch = submitted(2)
    status, looks = HelixClient.status, []

    def look(self, batch_id):
        found = status(self, batch_id)
        looks.append(found)
        if len(looks) in {3, 5}:
            finish(batch, succeeded=1)
        return found

    monkeypatch.setattr(HelixClient, "status", look)
    lines = [json.loads(line) for line in helix("watch", batch, "--json").stdout.splitlines()]
    assert [line["counts"]["succeeded"] for line in lines] == [0, 1, 2]


def test_interrupted_watching_leaves_the_batch_and_says_so(helix, submitted, monkeypatch):
    batch = submitted(1)

    def interrupt(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(HelixClient, "wait", interrupt)
    result = helix("watch", batch)
    assert result.exit_code == 130
    assert f"batch {batch} goes on" in result.stdout
    assert f"cancel {batch}" in result.stdout
    assert json.loads(helix("status", batch, "--json").stdout)["state"] == "queued"


def test_an_interrupt_anywhere_is_exit_code_130(helix, monkeypatch):
    def interrupt(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(HelixClient, "list", interrupt)
    result = helix("list")
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "\nInterrupted.\n")


def test_a_local_worker_that_ends_ends_the_wait(helix, submitted):
    """follow_for_person asks the worker at each look and passes its error on."""
    from io import StringIO

    from rich.console import Console

    from helix_jobs.errors import HelixError

    class Gone:
        started = True

        def check(self):
            raise HelixError("the local worker ended")

    batch = submitted(1)
    with HelixClient() as client, pytest.raises(HelixError, match="ended"):
        follow_for_person(client, batch, Console(file=StringIO()), worker=Gone())


def test_a_pipe_hears_something_at_least_every_half_minute(helix, submitted, finish):
    """Ten seconds between lines that differ, thirty between equal ones."""
    from io import StringIO

    from rich.console import Console

    from helix_jobs.cli.follow import _Follower

    batch = submitted(3)
    moment = 0.0
    out = StringIO()
    heard = []
    with HelixClient() as client:
        follower = _Follower(client, Console(file=out, width=200), None, lambda: moment)
        for moment in (0.0, 9.0, 11.0, 29.0, 30.0, 59.0, 60.0, 65.0, 71.0):
            if moment == 65.0:
                finish(batch, failed=1)
            before = out.getvalue()
            with click.Context(click.Command("helix"), info_name="helix"):
                follower._print(client.status(batch))
            if out.getvalue() != before:
                heard.append((moment, out.getvalue().splitlines()[-1].partition(" running")[0]))
    assert heard == [
        (0.0, "0 of 3 done, 0"),
        (30.0, "0 of 3 done, 0"),
        (60.0, "0 of 3 done, 0"),
        (71.0, "1 of 3 done, 0"),
    ]
