"""``plan``: what a file needs, from a count of its tokens and a trial; and nothing is stored."""

from __future__ import annotations

import json
from datetime import datetime, timedelta

import pytest


@pytest.fixture(autouse=True)
def _fake_engine(monkeypatch):
    monkeypatch.setenv("HELIX_ENGINE", "fake")
    monkeypatch.setenv("HELIX_FAKE_STEP_SECONDS", "0.001")


def lines(count, words=20, **fields):
    """Prompts that begin alike; the fake engine's answer has as many words as the prompt."""
    return [
        json.dumps({"prompt": f"{'same ' * 32}{'word ' * (1 + number % words)}{number}", **fields})
        for number in range(count)
    ]


def planned(result, code=0):
    assert result.exit_code == code, result.stderr
    return json.loads(result.stdout)


def test_tokens_are_counted_exactly_and_nothing_is_stored(helix, prompts):
    path = prompts(lines=lines(100, max_tokens=50))
    told = planned(helix("plan", path, "--max-batch-size", "4", "--json"))
    counts = [33 + 1 + number % 20 for number in range(100)]
    assert (told["lines"], told["bad_lines"], told["prompt_tokens"]) == (100, 0, sum(counts))
    assert told["longest_prompt"] == max(counts)
    # Behind the first prompt, two blocks of 16 tokens are shared.
    assert told["shared_prompt_tokens"] >= 99 * 32
    assert told["completion_tokens"] == pytest.approx(sum(min(50, count) for count in counts), rel=0.1)
    assert told["max_completion_tokens"] == 5000
    assert told["trial"]["lines"] == 32
    assert told["seconds"]["low"] <= told["seconds"]["median"] <= told["seconds"]["high"]
    assert told["done_at"]["median"].endswith("Z")
    assert told["by"] is None
    assert json.loads(helix("list", "--json").stdout) == []


def test_bad_long_and_impossible_lines_are_told(helix, prompts):
    path = prompts(lines=[*lines(6), '{"promt": "x"}', json.dumps({"prompt": "word " * 5000})])
    told = planned(helix("plan", path, "--json"), code=2)
    assert (told["lines"], told["bad_lines"], told["too_long"], told["refused"]) == (6, 1, 1, 0)
    assert [one["line"] for one in told["invalid"]] == [7]
    assert [one["line"] for one in told["refusals"]] == [8]
    shown = helix("plan", path)
    assert "6 lines, 1 bad, 1 too long for the context" in shown.stdout
    assert "did you mean prompt?" in shown.stderr


def test_a_person_is_told_how_likely_a_time_is(helix, prompts):
    path = prompts(lines=lines(40))
    tomorrow = (datetime.now().astimezone() + timedelta(days=1)).strftime("%Y-%m-%dT%H:%M")
    shown = helix("plan", path, "--by", tomorrow)
    assert "more than 99 % likely" in shown.stdout
    assert "done about" in shown.stdout
    told = planned(helix("plan", path, "--by", tomorrow, "--json"))
    assert told["by"]["probability"] == 1


def test_work_rests_outside_of_opening_hours(helix, prompts):
    now = datetime.now().astimezone()
    begin, end = now + timedelta(hours=2), now + timedelta(hours=3)
    hours = f"{begin:%H:%M}-{end:%H:%M}"
    told = planned(helix("plan", prompts(lines=lines(20)), "--hours", hours, "--json"))
    done = datetime.fromisoformat(told["done_at"]["median"])
    assert begin - timedelta(minutes=1) <= done <= begin + timedelta(minutes=1)


@pytest.mark.parametrize(("size", "tried"), [("7", 7), ("50%", 20), ("400", 40)])
def test_the_size_of_the_sample_can_be_chosen(helix, prompts, size, tried):
    told = planned(helix("plan", prompts(lines=lines(40)), "--sample", size, "--json"))
    assert told["trial"]["lines"] == tried


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--by", "2020-01-01T07:00"], "lies in the past"),
        (["--by", "noon"], "is no time; give one such as 07:00"),
        (["--by", "25:00"], "is no time"),
        (["--sample", "some"], "or a share such as 2%"),
        (["--sample", "0"], "or a share such as 2%"),
        (["--sample", "101%"], "or a share such as 2%"),
        (["--sample", "9" * 5000], "or a share such as 2%"),
    ],
)
def test_what_cannot_be_is_refused_before_a_model_is_loaded(helix, prompts, options, said):
    result = helix("plan", prompts(3), *options, "--json")
    assert result.exit_code == 2
    assert said in json.loads(result.stdout)["error"]["message"]


def test_a_file_without_a_line_that_can_be_answered_is_refused(helix, prompts):
    result = helix("plan", prompts(lines=[json.dumps({"prompt": "word " * 5000})]), "--json")
    assert result.exit_code == 2
    message = json.loads(result.stdout)["error"]["message"]
    assert "line 1 is the first: the prompt has 5000 tokens" in message


def test_a_file_of_bad_lines_alone_is_refused(helix, prompts):
    result = helix("plan", prompts(lines=['{"promt": "x"}']), "--json")
    assert "line 1 is the first: promt is not a known field" in json.loads(result.stdout)["error"]["message"]


def test_a_table_is_planned_as_it_is_submitted(helix, tmp_path):
    path = tmp_path / "reviews.csv"
    path.write_text("id,text\n" + "".join(f"{number},good book{number}\n" for number in range(12)), encoding="utf-8")
    told = planned(helix("plan", path, "--prompt", "Summarise: {{ text }}", "--limit", "10", "--json"))
    assert (told["lines"], told["prompt_tokens"]) == (10, 30)


def test_requests_for_several_answers_count_each(helix, prompts):
    told = planned(helix("plan", prompts(lines=lines(20, n=3, temperature=1)), "--json"))
    assert (told["lines"], told["answers"]) == (20, 60)
    assert told["completion_tokens"] > 60 * 30
