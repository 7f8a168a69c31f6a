"""Real workers, commands and servers tell of real batches."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import pytest

from helix_jobs.brakes import Brakes
from tests.integration.http_server import serving
from tests.unit.notify.receiver import SECRET, receiving
from tests.worker_box import prompts, wait_until

if TYPE_CHECKING:
    from tests.worker_box import Box


@pytest.mark.thorough
def test_a_worker_tells_of_the_end_of_a_batch_and_its_log_holds_no_secret(box: Box) -> None:
    with receiving(500) as receiver:
        worker = box.start_worker(
            webhook_url=receiver.url, webhook_secret=SECRET, webhook_allow_private="1", log_level="debug"
        )
        batch = box.submit(*prompts(5))
        box.wait_states(batch, succeeded=5)
        wait_until(lambda: len(receiver.requests) == 2, lambda: f"nobody was told a second time: {worker.log}")
    first, second = receiver.requests
    assert json.loads(first.body)["type"] == "batch.completed"
    assert json.loads(first.body)["data"]["id"] == batch
    assert (first.body, first.headers["webhook-id"]) == (second.body, second.headers["webhook-id"])
    assert "the host 127.0.0.1 answered 500" in worker.log
    for hidden in (SECRET, SECRET.removeprefix("whsec_"), "in-the-query"):
        assert hidden not in worker.log


@pytest.mark.thorough
def test_a_worker_tells_of_what_has_ended_before_it_ends_itself(box: Box) -> None:
    told = box.temporary / "told.jsonl"
    code = f"import sys; open({str(told)!r}, 'a').write(sys.stdin.read())"
    file = box.temporary / "prompts.jsonl"
    file.write_text('{"prompt": "Hello"}\n')
    done = box.run(
        *(sys.executable, "-m", "helix_jobs", str(file), "--local", "--json"),
        env={"HELIX_NOTIFY_COMMAND": f'{sys.executable} -c "{code}"'},
    )
    assert done.returncode == 0, done.stderr
    (event,) = [json.loads(line) for line in told.read_text().splitlines()]
    assert (event["type"], event["data"]["id"]) == ("batch.completed", json.loads(done.stdout)["id"])


@pytest.mark.thorough
def test_a_worker_stops_a_batch_that_fails_and_tells_why_and_resume_goes_on(box: Box) -> None:
    told = box.temporary / "told.jsonl"
    code = f"import sys; open({str(told)!r}, 'a').write(sys.stdin.read())"
    lines = [{"prompt": f"bad apple {number}"} for number in range(40)] + [{"prompt": "endless story"}] * 40
    with box.client() as client:
        batch = client.submit(lines, brakes=Brakes(stop_if_failing=0.5)).batch_id
        command = f'{sys.executable} -c "{code}"'
        worker = box.start_worker(fake_fail="apple", fake_hang="endless", notify_command=command)
        wait_until(lambda: client.status(batch).paused_why, lambda: f"it is not paused: {worker.log}")
        why = client.status(batch).paused_why or ""
        assert "failed, 100 %; the limit is 50 % (--stop-if-failing); the most frequent error is engine_error" in why
        assert f"batch {batch} is paused" in worker.log
        wait_until(lambda: told.is_file() and len(told.read_text().splitlines()) == 2, "two events were not told")
        events = {event["type"]: event for event in map(json.loads, told.read_text().splitlines())}
        assert events.keys() == {"helix.batch.paused", "helix.batch.failing"}
        assert events["helix.batch.paused"]["data"]["why"] == why
        waiting = client.resume(batch, release_brakes=True)
        assert waiting > 0
        assert (client.status(batch).paused_at, client.status(batch).brakes) == (None, None)
        client.cancel(batch)
        wait_until(lambda: len(told.read_text().splitlines()) == 3, "the end was not told")
    assert json.loads(told.read_text().splitlines()[-1])["type"] == "batch.cancelled"


@pytest.mark.thorough
def test_a_server_tells_where_no_worker_runs(box: Box) -> None:
    with receiving() as receiver:
        told = {"webhook_url": receiver.url, "webhook_secret": SECRET, "webhook_allow_private": 1}
        with serving(box, **told):
            batch = box.submit(*prompts(3))
            assert box.run(sys.executable, "-m", "helix_jobs", "cancel", batch).returncode == 0
            wait_until(lambda: receiver.requests, "nobody was told")
    (request,) = receiver.requests
    assert json.loads(request.body)["type"] == "batch.cancelled"


@pytest.mark.thorough
def test_channels_are_tried_and_what_was_told_is_listed(box: Box) -> None:
    def notify(*arguments: str, code: int = 0, **environment: str) -> str:
        variables = {f"HELIX_{name.upper()}": value for name, value in environment.items()}
        done = box.run(sys.executable, "-m", "helix_jobs", "notify", *arguments, env=variables)
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    assert "no channel is set; set HELIX_WEBHOOK_URL" in notify("test", code=2)
    secret = notify("secret").strip()
    with receiving() as receiver:
        told = {"webhook_url": receiver.url, "webhook_secret": secret, "notify_command": "no-such-program"}
        assert "set HELIX_WEBHOOK_ALLOW_PRIVATE=1" in notify("test", code=1, **told)
        found = json.loads(notify("test", "--json", code=1, **told, webhook_allow_private="1"))
    assert [one["delivered"] for one in found["channels"]] == [True, False]
    assert found["channels"][0]["answer"] == "127.0.0.1 answered 204"
    assert "no-such-program cannot be started" in found["channels"][1]["answer"]
    assert json.loads(receiver.requests[0].body)["type"] == "helix.test"
    gone = notify("test", code=1, webhook_url=receiver.url, webhook_secret=secret, webhook_allow_private="1")
    assert gone == "webhook: not delivered: the host 127.0.0.1 was not reached: Connection refused\n"
    assert "nothing" in notify("list").lower()


@pytest.mark.thorough(fast=1)
@pytest.mark.parametrize("command", ["worker", "serve"])
def test_a_setting_of_notices_that_makes_no_sense_ends_the_start(box: Box, command: str) -> None:
    told = {"HELIX_WEBHOOK_URL": "https://hooks.example/x"}
    done = box.run(sys.executable, "-m", "helix_jobs", command, env=told)
    assert done.returncode == 2
    assert "HELIX_WEBHOOK_SECRET" in done.stderr
