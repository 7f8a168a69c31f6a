"""Passwords and prompts are in nothing that Helix prints or logs, whatever goes wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.worker_box import ROOT, make_box

MARK = "MARKEDs3cret"
# Nothing listens on port 1, and no name ends in .invalid.
REDIS_URLS = [
    f"redis://:{MARK}@127.0.0.1:1/0",
    f"rediss://user:{MARK}%40x@127.0.0.1:1/0",
    f"redis://127.0.0.1:1/0?password={MARK}",
    f"redis://user:{MARK}@nowhere.invalid:6379/0",
    f"redis://:{MARK}@127.0.0.1:port/0",
    f"nosuch://user:{MARK}@127.0.0.1/0",
]
DATABASE_URLS = [
    f"postgresql://user:{MARK}@127.0.0.1:1/helix",
    f"postgresql://user@127.0.0.1:1/helix?password={MARK}",
    f"postgresql://user:{MARK}%2F%40@nowhere.invalid/helix",
    f"postgresql://user:{MARK}@127.0.0.1:port/helix",
    f"postgresql://user@127.0.0.1:1/helix?sslpassword={MARK}&sslmode=require",
    f"mysql://user:{MARK}@127.0.0.1/helix",
]
COMMANDS = [["submit", "prompts.jsonl"], ["status"], ["db", "upgrade"]]
WAYS = [["--log-level", "debug"], ["--json", "--log-level", "debug"]]
# One process for all of them: what takes the time is starting one.
RUN_ALL = """
import json, sys
from click.testing import CliRunner
from helix_jobs.cli.group import cli
for command, environment in json.loads(sys.argv[1]):
    done = CliRunner().invoke(cli, command, env=environment, catch_exceptions=False)
    print(json.dumps([command, environment, done.exit_code, done.output + done.stderr]))
"""


def start(directory, *command, **environment):
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HELIX_", "CELERY_"))}
    settings = {"HELIX_HOME": str(directory / "home"), "HELIX_ENGINE": "fake", "TMPDIR": str(directory)}
    settings["HELIX_LOCK_DIR"] = str(directory / "locks")
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=directory,
        env={**clean, "PYTHONPATH": str(ROOT), **settings, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.thorough
def test_no_password_is_printed_when_a_service_cannot_be_reached(short_tmp):
    (short_tmp / "prompts.jsonl").write_text('{"prompt": "hello"}\n', encoding="utf-8")
    tries = [([*c, *way], {"HELIX_DATABASE_URL": url}) for url in DATABASE_URLS for c in COMMANDS for way in WAYS]
    tries += [([*COMMANDS[0], *way], {"HELIX_REDIS_URL": url}) for url in REDIS_URLS for way in WAYS]
    workers = [
        start(short_tmp, "-m", "helix_jobs", "worker", "--log-level", "debug", *way, **environment)
        for environment in ({"HELIX_DATABASE_URL": DATABASE_URLS[0]}, {"HELIX_REDIS_URL": REDIS_URLS[0]})
        for way in ([], ["--json"])
    ]
    commands = start(short_tmp, "-c", RUN_ALL, json.dumps(tries))
    printed, _ = commands.communicate(timeout=240)
    assert commands.returncode == 0, printed
    ended = [json.loads(line) for line in printed.splitlines()]
    assert len(ended) == len(tries)
    for command, environment, code, output in ended:
        assert code in (2, 3), (command, environment, output)
        assert "Error: " in output
        assert MARK not in output, (command, environment, output)
    for worker in workers:
        output, _ = worker.communicate(timeout=240)
        # With one device for all of them they may also be in each other's way.
        assert worker.returncode in (2, 3), output
        assert MARK not in output
    logs = [path.read_text(errors="replace") for path in short_tmp.rglob("*.log")]
    assert not any(MARK in text for text in logs)


@pytest.mark.thorough
@pytest.mark.redis
def test_no_prompt_and_no_answer_is_in_a_log(short_tmp):
    box = make_box(short_tmp / "home", short_tmp, redis_url=None, database_url=None)
    try:
        worker = box.start_worker("--log-level", "debug", "--log-format", "text", fake_fail="FAIL", fake_crash="CRASH")
        batch_id = box.submit(f"{MARK} one", f"FAIL {MARK}", f"{MARK} " * 70_000, metadata={"note": MARK})
        box.wait_states(batch_id, succeeded=1, failed=2)
        # By itself: a crash fails whatever is in the engine.
        box.wait_states(box.submit(f"CRASH {MARK}"), failed=1)
        shown = box.run(sys.executable, "-m", "helix_jobs", "status", batch_id, "--jobs", "--log-level", "debug")
        assert worker.log.count("job ended") == 4
        assert MARK not in worker.log
        assert MARK not in shown.stdout + shown.stderr
        bad = short_tmp / "bad.jsonl"
        bad.write_text(json.dumps({"prompt": MARK, "max_tokens": 0}) + f'\n{{"prompt": "{MARK}"\n', encoding="utf-8")
        for way in ([], ["--json"]):
            refused = box.run(sys.executable, "-m", "helix_jobs", "submit", str(bad), *way, "--log-level", "debug")
            assert refused.returncode == 2
            assert MARK not in refused.stdout + refused.stderr
    finally:
        box.close()
