"""Accept or try again with real workers: rules in the worker, a function at the client, and what a person sees."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from helix_jobs.engine.fake_engine import DICE
from helix_jobs.errors import InputError
from helix_jobs.new_job import derive_seed
from helix_jobs.storage import status_counters as counters
from helix_jobs.storage.states import JobState
from helix_jobs.worker.acceptance import seed_of_try
from tests.worker_box import ROOT

if TYPE_CHECKING:
    from helix_jobs.storage.records import JobResult
    from tests.worker_box import Box

HIGH = {"regex": "p\\d+ [3-5]"}
LINES = [{"prompt": f"p{number} {DICE}", "custom_id": f"c{number}"} for number in range(40)]


def faces(batch_id: str, line: int) -> list[int]:
    """What the die shows in a job's three tries."""
    seed = derive_seed(batch_id, line)
    return [seed_of_try(seed, tries) % 6 for tries in range(3)]


def expected(batch_id: str, line: int) -> tuple[str, int, str]:
    """State, tries and answer of a job under the rule ``HIGH``."""
    shown = faces(batch_id, line)
    for tries, face in enumerate(shown):
        if face >= 3:
            return "succeeded", tries, f"p{line - 1} {face}"
    return "failed", 3, f"p{line - 1} {shown[-1]}"


def check(box: Box, batch_id: str) -> None:
    with box.client() as client:
        found = {r.line: (str(r.state), r.tries, r.output_text) for r in client.results(batch_id, include_failed=True)}
        status = client.status(batch_id)
    assert found == {line: expected(batch_id, line) for line in range(1, len(LINES) + 1)}
    assert status.refused == sum(tries for _, tries, _ in found.values()) > 0
    # The batch's id seeds the dice, so a batch in which each job is accepted at last does occur.
    failed = sum(state == "failed" for state, _, _ in found.values())
    assert status.error_counts == ({"not_accepted": failed} if failed else {})
    assert {row.attempts for row in box.rows(batch_id)} == {1}, "a refused answer is no attempt that was lost"
    with box.database().write() as c:
        assert counters.counters_agree(c, batch_id)


@pytest.mark.thorough
def test_refused_jobs_are_answered_again_by_the_worker(embedded_box: Box) -> None:
    with embedded_box.client() as client:
        batch_id = client.submit(LINES, accept=HIGH).batch_id
        embedded_box.start_worker()
        client.wait(batch_id, timeout=60, poll=0.1)
    check(embedded_box, batch_id)


def test_a_function_of_the_submitter_decides(embedded_box: Box) -> None:
    judged: list[JobResult] = []

    def is_high(result: JobResult) -> bool:
        judged.append(result)
        return str(result.output_text)[-1] in "345"

    embedded_box.start_worker()
    with embedded_box.client() as client:
        batch_id = client.submit(LINES, accept=is_high).batch_id
    check(embedded_box, batch_id)
    assert len(judged) == sum(
        tries + (state == "succeeded") for state, tries, _ in (expected(batch_id, n + 1) for n in range(len(LINES)))
    ), "each answer is judged once"
    failed = next(row for row in embedded_box.rows(batch_id) if row.state == "failed")
    assert "the submitter's own function refused the last answer" in failed.error_message


def test_a_function_that_breaks_off_loses_nothing_and_can_be_called_again(embedded_box: Box) -> None:
    calls = 0

    def breaks_off(result: JobResult) -> bool:
        nonlocal calls
        calls += 1
        if calls == 30:
            raise KeyError(result.line)
        return str(result.output_text)[-1] in "345"

    embedded_box.start_worker()
    with embedded_box.client() as client:
        batch_id = client.submit(LINES).batch_id
        with pytest.raises(KeyError):
            client.accept(batch_id, breaks_off, poll=0.1)
        assert client.status(batch_id).stored == len(LINES)
        client.accept(batch_id, breaks_off, poll=0.1)
    check(embedded_box, batch_id)


def test_what_the_client_refuses_to_begin_with(embedded_box: Box) -> None:
    with embedded_box.client() as client:
        with pytest.raises(InputError, match=r"accept\.min_chars: is no integer"):
            client.submit(LINES, accept={"min_chars": "many"})
        batch_id = client.submit(LINES).batch_id
        with pytest.raises(InputError, match="max_tries is 0"):
            client.accept(batch_id, lambda _: True, max_tries=0)
        client.cancel(batch_id)
        assert client.accept(batch_id, lambda _: False).counts[JobState.CANCELLED] == len(LINES)


def submit_locally(box: Box, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = box.temporary / "prompts.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES), encoding="utf-8")
    return subprocess.run(
        [sys.executable, str(ROOT / "submit.py"), str(path), "--local", *arguments],
        cwd=box.temporary,
        env=box.environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.thorough
def test_one_command_from_prompts_to_accepted_answers(embedded_box: Box) -> None:
    rule = embedded_box.temporary / "rule.json"
    rule.write_text(json.dumps(HIGH), encoding="utf-8")
    done = submit_locally(embedded_box, "--accept", str(rule))
    assert done.returncode == 1, "some jobs were not accepted"
    batch_id = embedded_box.client().list()[0].id
    check(embedded_box, batch_id)
    assert "not_accepted" in done.stderr
    refused = sum(expected(batch_id, n + 1)[1] for n in range(len(LINES)))
    assert f"{refused} answers refused or asked for again" in done.stderr
    status = run(embedded_box, "status", batch_id).stdout
    assert f"Tried again  {refused} answers refused or asked for again" in status
    assert json.loads(run(embedded_box, "status", batch_id, "--json").stdout)["refused"] == refused
    written = [json.loads(line) for line in run(embedded_box, "results", batch_id, "--failed").stdout.splitlines()]
    rows = [row for row in written if row["state"] == "failed"]
    assert rows
    assert all(row["error_code"] == "not_accepted" and row["output_text"] and row["tries"] == 3 for row in rows)
    lines = run(embedded_box, "results", batch_id, "--failed", "--format", "openai").stdout.splitlines()
    errors = [parsed for parsed in map(json.loads, lines) if parsed["error"] is not None]
    assert len(errors) == len(rows)
    assert all(line["response"] is None and line["error"]["code"] == "not_accepted" for line in errors)
    retried = run(embedded_box, "retry", batch_id)
    assert retried.returncode == 0
    assert {row.tries for row in embedded_box.rows(batch_id) if row.state == "queued"} == {0}


def run(box: Box, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "helix_jobs", *arguments],
        cwd=box.temporary,
        env={**box.environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
