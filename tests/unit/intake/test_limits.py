"""What is too large is refused with its line, its field, the limit and where to raise it."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING

import pytest

from helix_jobs import HelixClient
from helix_jobs.engine.sampling_params import SamplingParams
from helix_jobs.errors import BadLine, ConfigurationError, InputError, InvalidInputError
from helix_jobs.intake.limits import MAX_MESSAGES, MAX_METADATA_CHARS, Limits
from helix_jobs.intake.lines import LineReader
from helix_jobs.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

LIMITS = Limits(prompt_chars=20, max_tokens=300, jobs=3)
HELLO = {"role": "user", "content": "hello"}


def read(values, limits=LIMITS):
    data = json.dumps(values).encode()
    (item,) = LineReader(SamplingParams(), limits=limits).read(io.BytesIO(data))
    return item


def openai(**body):
    return {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}


@pytest.mark.parametrize(
    ("values", "field", "reason", "remedy"),
    [
        ({"prompt": "x" * 21}, "prompt", "has 21 characters", "at most 20, or raise HELIX_MAX_PROMPT_CHARS"),
        (
            {"messages": [HELLO, {"role": "user", "content": "y" * 16}]},
            "messages",
            "has 21 characters",
            "at most 20, or raise HELIX_MAX_PROMPT_CHARS",
        ),
        (openai(messages=[{"role": "user", "content": "z" * 30}]), "body.messages", "has 30 characters", "20"),
        (
            {"prompt": "x", "max_tokens": 301},
            "max_tokens",
            "is 301",
            "at most 300, or raise HELIX_MAX_TOKENS_PER_JOB",
        ),
        (openai(messages=[HELLO], max_completion_tokens=301), "body.max_tokens", "is 301", "at most 300"),
        ({"messages": [HELLO] * (MAX_MESSAGES + 1)}, "messages", "holds 10,001 messages", "at most 10,000"),
        (
            {"prompt": "x", "metadata": {"a": "m" * MAX_METADATA_CHARS}},
            "metadata",
            "has 65,545 characters as JSON",
            "at most 65,536",
        ),
    ],
)
def test_each_limit_names_line_field_size_and_remedy(values, field, reason, remedy):
    bad = read(values)
    assert isinstance(bad, BadLine)
    assert (bad.line, bad.field, bad.reason) == (1, field, reason)
    assert remedy in bad.remedy


@pytest.mark.parametrize(
    "values",
    [
        {"prompt": "x" * 20, "max_tokens": 300},
        {"messages": [HELLO] * 4},
        openai(messages=[HELLO]),
        {"prompt": "x", "metadata": {"a": "m" * (MAX_METADATA_CHARS - 9)}},
    ],
)
def test_what_just_fits_is_accepted(values):
    assert not isinstance(read(values), BadLine)


@pytest.mark.parametrize("values", [{"prompt": "x", "max_tokens": 10**400}, {"prompt": "x", "seed": 10**4000}])
def test_huge_integers_are_refused_in_one_short_line(values):
    bad = read(values)
    assert isinstance(bad, BadLine)
    assert len(str(bad)) < 400


def settings(tmp_path: Path, **changes) -> Settings:
    return Settings(home=tmp_path / "h", redis_url=None, database_url=f"sqlite:///{tmp_path / 'h' / 'x.db'}", **changes)


def test_a_batch_over_the_limit_stores_nothing_and_names_the_line(tmp_path):
    with HelixClient(settings(tmp_path, max_jobs_per_batch=2)) as client:
        assert client.submit([{"prompt": "a"}, {"prompt": "b"}]).total == 2
        with pytest.raises(InputError, match=r"line 3: one batch holds at most 2 jobs.*HELIX_MAX_JOBS_PER_BATCH"):
            client.submit([{"prompt": "a"}, {"prompt": "b"}, {"prompt": "c"}])
        assert len(client.list()) == 1
        with pytest.raises(InvalidInputError, match="max_tokens: is 500"):
            HelixClient(settings(tmp_path, max_tokens_per_job=400)).submit([{"prompt": "a", "max_tokens": 500}])


def test_the_limits_are_settings():
    read = Settings.from_environment(
        {"HELIX_MAX_JOBS_PER_BATCH": "5", "HELIX_MAX_PROMPT_CHARS": "6", "HELIX_MAX_TOKENS_PER_JOB": "7"}
    )
    assert Limits.of(read) == Limits(jobs=5, prompt_chars=6, max_tokens=7)
    with pytest.raises(ConfigurationError, match="HELIX_MAX_TOKENS_PER_JOB is '131073'; give a whole number from 1 to"):
        Settings.from_environment({"HELIX_MAX_TOKENS_PER_JOB": "131073"})
