"""What max_tokens cut is said wherever a batch is summed up, and can be taken again with more room."""

from __future__ import annotations

import json

import pytest
from sqlalchemy import select

from helix_jobs.client.client import HelixClient
from helix_jobs.storage import status_counters as counters
from helix_jobs.storage.schema import jobs

LINES = [
    '{"prompt": "one", "custom_id": "a", "metadata": {"k": 1}, "priority": 3, "temperature": 0.5, "stop": ["x"]}',
    '{"messages": [{"role": "user", "content": "two"}], "max_tokens": 10, "truncate_prompt": {"tokens": 9}, "top_k":5}',
    '{"prompt": "three", "max_tokens": 64}',
]


@pytest.fixture
def batch(helix, prompts, finish):
    """Two answers that ended at their limit (256 and 10 tokens), one that stopped, one that the context cut."""
    batch = helix("submit", prompts(lines=[*LINES, '{"prompt": "four"}'])).stdout.strip()
    finish(batch, succeeded=1, finish_reason="length", completion_tokens=256)
    finish(batch, succeeded=1, finish_reason="length", completion_tokens=10)
    finish(batch, succeeded=1, completion_tokens=30)
    finish(batch, succeeded=1, finish_reason="length", completion_tokens=20)
    return batch


def test_it_is_counted_and_said(helix, batch, database):
    assert "Cut off  3 answers by max_tokens or the context" in helix("status", batch).stdout
    assert json.loads(helix("status", batch, "--json").stdout)["cut_off"] == 3
    told = helix("watch", batch).stdout
    assert "3 answers cut off by max_tokens or the context" in told
    assert f"retry {batch} --cut --max-tokens N" in told
    with database.write() as c:
        assert counters.counters_agree(c, batch)
        counters.recount(c, batch)
    assert json.loads(helix("status", batch, "--json").stdout)["cut_off"] == 3


def test_a_batch_without_cut_answers_says_nothing_of_it(helix, submitted, finish):
    batch = submitted(1)
    finish(batch, succeeded=1)
    assert "ut off" not in helix("status", batch).stdout + helix("watch", batch).stdout


def test_those_that_a_smaller_limit_cut_are_taken_again_as_they_were(helix, batch, database):
    result = helix("retry", batch, "--cut", "--max-tokens", 1000)
    assert result.exit_code == 0
    again = result.stdout.strip()
    assert "2 jobs submitted again. Follow with: " in result.stderr
    with database.read() as c:
        rows = c.execute(select(jobs).where(jobs.c.batch_id == again).order_by(jobs.c.line)).all()
    assert [(row.custom_id, row.priority) for row in rows] == [("a", 3), (None, 0)]
    first, second = (row.request for row in rows)
    assert (first["prompt"], first["metadata"]) == ("one", {"k": 1})
    assert first["sampling"] == {"max_tokens": 1000, "temperature": 0.5, "stop": ["x"]}
    assert second["messages"] == [{"role": "user", "content": "two"}]
    assert second["sampling"] == {"max_tokens": 1000, "top_k": 5}
    assert second["truncate_prompt"] == {"keep": "end", "tokens": 9}
    with HelixClient() as client:
        assert len(list(client.results(batch))) == 4
    twice = helix("retry", batch, "--cut", "--max-tokens", 1000)
    assert twice.stdout.strip() == again
    assert "2 jobs were submitted again before, as this batch. Follow with: " in twice.stderr
    value = json.loads(helix("retry", batch, "--cut", "--max-tokens", 1000, "--json").stdout)
    assert value == {"id": batch, "queued": 2, "batch_id": again, "reused": True}


def test_those_that_were_cut_since_come_with_the_earlier_ones_in_another_batch(helix, prompts, finish):
    batch = helix("submit", prompts(2)).stdout.strip()
    finish(batch, succeeded=1, finish_reason="length", completion_tokens=256)
    finish(batch, failed=1)
    before = helix("retry", batch, "--cut", "--max-tokens", 1000)
    assert "1 job submitted again" in before.stderr
    helix("cancel", before.stdout.strip())
    helix("retry", batch)
    finish(batch, succeeded=1, finish_reason="length", completion_tokens=256)
    since = helix("retry", batch, "--cut", "--max-tokens", 1000)
    assert "2 jobs submitted again" in since.stderr
    assert since.stdout != before.stdout
    assert helix("retry", batch, "--cut", "--max-tokens", 1000).stdout == since.stdout


def test_a_job_with_a_cut_choice_is_taken_again_once_with_all_its_choices(helix, prompts, finish, database):
    lines = ['{"prompt": "one", "n": 3, "temperature": 1}', '{"prompt": "two"}']
    batch = helix("submit", prompts(lines=lines)).stdout.strip()
    finish(batch, succeeded=1, choices=3, finish_reason="length", completion_tokens=256)
    finish(batch, succeeded=1)
    assert "Cut off  3 answers by max_tokens or the context" in helix("status", batch).stdout
    result = helix("retry", batch, "--cut", "--max-tokens", 1000)
    assert "1 job submitted again" in result.stderr
    with database.read() as c:
        (row,) = c.execute(select(jobs).where(jobs.c.batch_id == result.stdout.strip())).all()
    assert row.request["sampling"] == {"max_tokens": 1000, "temperature": 1, "n": 3}


TOOLS = [{"type": "function", "function": {"name": "wait", "parameters": {"type": "object"}}}]
ASKED = [
    {"prompt": [5, 6, 7], "max_tokens": 8, "logprobs": 2, "logit_bias": {"7": -1}},
    {"prompt": "a", "response_format": {"type": "json_object"}, "accept": {"schema": True}},
    {
        "prompt": "b",
        "response_format": {"type": "json_schema", "schema": {"type": "object"}, "whitespace": "model"},
        "model": "m",
    },
    *({"prompt": "c", **form} for form in ({"guided_regex": "a|b"}, {"guided_choice": ["x", "y"]})),
    {"prompt": "d", "guided_grammar": 'start: "a"'},
    {"messages": [{"role": "user", "content": "e"}], "reasoning_effort": "low", "max_reasoning_tokens": 3},
    {
        "messages": [{"role": "user", "content": "f"}, {"role": "assistant", "content": "F"}],
        "tools": TOOLS,
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "enable_thinking": False,
        "chat_template_kwargs": {"x": 1},
    },
]


def test_everything_that_a_line_asked_for_is_asked_for_again(helix, prompts, finish, database):
    batch = helix("submit", prompts(lines=[json.dumps(line) for line in ASKED])).stdout.strip()
    finish(batch, succeeded=len(ASKED), finish_reason="length", completion_tokens=256)
    result = helix("retry", batch, "--cut", "--max-tokens", 1000)
    assert result.exit_code == 0, result.stderr
    with database.read() as c:
        found = {
            batch_id: list(
                c.execute(select(jobs.c.request).where(jobs.c.batch_id == batch_id).order_by(jobs.c.line)).scalars()
            )
            for batch_id in (batch, result.stdout.strip())
        }
    before, after = found.values()
    assert len(before) == len(ASKED)
    for old, new in zip(before, after, strict=True):
        wanted = {**old, "sampling": {**old["sampling"], "max_tokens": 1000}}
        assert {**new, "seed": None} == {**wanted, "seed": None}


def test_a_prompt_that_was_only_scored_was_not_cut(helix, prompts, finish):
    line = '{"prompt": "a", "echo": true, "logprobs": 0, "max_tokens": 0}'
    batch = helix("submit", prompts(lines=[line])).stdout.strip()
    finish(batch, succeeded=1, finish_reason="length", completion_tokens=0)
    assert "was cut off by a max_tokens below" in helix("retry", batch, "--cut", "--max-tokens", 10).stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--cut", "--max-tokens", 10], "was cut off by a max_tokens below 10"),
        (["--cut"], "--cut and --max-tokens belong together"),
        (["--max-tokens", 10], "--cut and --max-tokens belong together"),
    ],
)
def test_what_makes_no_sense_is_refused(helix, batch, arguments, told):
    result = helix("retry", batch, *arguments)
    assert result.exit_code == 2
    assert told in result.stderr


def test_a_batch_that_runs_is_waited_for_first(helix, submitted):
    assert "still runs; wait for its end" in helix("retry", submitted(2), "--cut", "--max-tokens", 999).stderr
