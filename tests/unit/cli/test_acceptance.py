"""Acceptance rules on the command line: what --accept takes, and how refused answers are shown."""

from __future__ import annotations

import json

import pytest
from sqlalchemy import select

from helix_jobs.storage import claims, publishing
from helix_jobs.storage.records import FinishedJob, ResultRow
from helix_jobs.storage.schema import jobs
from tests.store_helpers import now, register
from tests.unit.cli.conftest import METRICS


@pytest.fixture
def refuse(database):
    """``refuse(2)`` does what a worker does to the next jobs whose last answer is refused."""

    def run(count):
        register(database, "w1")
        with database.write() as c:
            for job in publishing.publishable(c, count):
                claimed = claims.claim(c, job.id, worker_id="w1", now=now())
                done = FinishedJob(claimed.id, claimed.lease, "w1")
                row = ResultRow(output_text="a lake", **METRICS)
                assert claims.finish_not_accepted(c, done, [row], "2 answers were refused: no river", now())

    return run


def stored_rules(database):
    with database.read() as c:
        return [request.get("accept") for request in c.execute(select(jobs.c.request).order_by(jobs.c.line)).scalars()]


def test_json_or_a_file_is_the_rule_of_lines_that_do_not_say(helix, prompts, database, tmp_path):
    lines = ['{"prompt": "a"}', '{"prompt": "b", "accept": {"min_chars": 5}}', '{"prompt": "c", "accept": false}']
    assert helix("submit", prompts(lines=lines), "--accept", '{"not_cut": true}').exit_code == 0
    rule = tmp_path / "rule.json"
    rule.write_text('{"regex": "a+", "max_tries": 2}', encoding="utf-8")
    assert helix("submit", prompts(1), "--accept", rule).exit_code == 0
    assert stored_rules(database) == [
        {"not_cut": True},
        {"regex": "a+", "max_tries": 2},
        {"min_chars": 5, "not_cut": True},
        None,
    ]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("nothing.json", "cannot be read (No such file or directory)"),
        ("{", "it is no JSON"),
        ('{"min_chars": "x"}', "accept.min_chars: is no integer; give an integer from 1 to"),
        ("{}", "accept: states no condition; give one or more of schema, regex,"),
        ("[" * 9, "cannot be read"),
        ("\0", "cannot be read"),
    ],
)
def test_a_wrong_rule_is_refused(helix, prompts, value, said):
    result = helix("submit", prompts(1), "--accept", value)
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split())


def test_a_rule_that_cannot_be_used_is_refused_before_anything_is_stored(helix, prompts):
    result = helix("submit", prompts(1), "--accept", '{"regex": "(?=a)"}')
    assert result.exit_code == 2
    assert "accept.regex: is no regular expression that can be used" in " ".join(result.stderr.split())
    assert helix("list", "--json").stdout.strip() in ("", "[]")


def test_a_refused_answer_is_shown_below_its_reason(helix, submitted, refuse, finish):
    batch = submitted(2)
    refuse(1)
    finish(batch, succeeded=1)
    shown = helix("results", batch, "--failed", "--format", "text").stdout
    assert "failed, not_accepted: 2 answers were refused: no river\n   a lake" in shown
    assert "Tried again  1 answer refused or asked for again" in helix("status", batch).stdout
    told = helix("watch", batch)
    assert told.exit_code == 1
    assert "1 answer refused or asked for again" in told.stdout
    (job,) = json.loads(helix("status", batch, "--jobs", "--json").stdout)["jobs"]
    assert (job["tries"], job["error_code"]) == (1, "not_accepted")


def test_a_batch_without_refused_answers_says_nothing_of_them(helix, submitted, finish):
    batch = submitted(1)
    finish(batch, succeeded=1)
    told = helix("status", batch).stdout + helix("watch", batch).stdout
    assert "Refused  " not in told
    assert "refused by" not in told


def test_answers_taken_again_with_more_room_keep_their_rule(helix, prompts, finish, database):
    batch = helix("submit", prompts(1), "--accept", '{"min_chars": 3}').stdout.strip()
    finish(batch, succeeded=1, finish_reason="length", completion_tokens=256)
    assert helix("retry", batch, "--cut", "--max-tokens", 1000).exit_code == 0
    assert stored_rules(database) == [{"min_chars": 3}] * 2
