"""``helix manifest`` says what made a batch; ``helix submit --like`` repeats its options."""

from __future__ import annotations

import json

import pytest
from sqlalchemy import select

from helix_jobs.client.client import HelixClient
from helix_jobs.storage import workers
from helix_jobs.storage.schema import batches, jobs
from tests.store_helpers import now, worker

SETUP = {
    "helix": "0.1.0",
    "target": {"name": "qwen", "digest": "ab" * 32},
    "dtype": "bfloat16",
    "is_reproducible": True,
    "libraries": {"torch": "2.9"},
}


@pytest.fixture
def enter(database):
    """``enter("w1", setup={...})`` stores a worker's row."""

    def run(name, **changes):
        with database.write() as c:
            workers.register_worker(c, worker(name, **changes), now())

    return run


def test_it_says_what_was_asked_and_what_answered(helix, prompts, finish, enter):
    enter("w1", target_model="qwen", setup=SETUP)
    batch = helix("submit", prompts(3), "--temperature", 0.5, "--metadata", "team=search").stdout.strip()
    finish(batch, succeeded=2, failed=1)
    told = helix("manifest", batch).stdout
    assert "w1 (3 jobs)" in told
    assert f"qwen, sha256 {'ab' * 32}" in told
    for fact in ("Default temperature", "Metadata team", "prompts.jsonl", "bfloat16", "torch 2.9"):
        assert fact in told
    value = json.loads(helix("manifest", batch, "--json").stdout)
    assert value["defaults"] == {"temperature": 0.5}
    (made,) = value["workers"]
    assert (made["id"], made["jobs"], made["setup"]) == ("w1", 3, SETUP)


def test_a_batch_that_nobody_answered_yet_says_so(helix, submitted):
    batch = submitted(1)
    assert "none has ended a job of it yet" in helix("manifest", batch).stdout
    assert json.loads(helix("manifest", batch, "--json").stdout)["workers"] == []


def test_a_worker_of_an_older_version_is_named_by_what_its_row_has(helix, submitted, finish, enter):
    enter("w1")
    batch = submitted(1)
    finish(batch, succeeded=1)
    told = helix("manifest", batch).stdout
    assert "target" in told
    assert "not known: an older version" in told


def test_no_such_batch(helix):
    result = helix("manifest", "b-none")
    assert result.exit_code == 2
    assert "there is no batch 'b-none'" in result.stderr


RULE = {"not_cut": True, "max_tries": 5}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}


def test_like_repeats_the_options_and_given_ones_go_before(helix, prompts, tmp_path, database):
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA), encoding="utf-8")
    options = ("--temperature", 0.5, "--max-tokens", 40, "--stop", "END", "--truncate-prompt-tokens", 99)
    forms = ("--json-schema", tmp_path / "schema.json", "--accept", json.dumps(RULE))
    first = helix("submit", prompts(1), *options, *forms).stdout.strip()
    other = prompts(2, name="others.jsonl")
    again = helix("submit", other, "--like", first, "--temperature", 0, env={"HELIX_MAX_TOKENS": "7"}).stdout.strip()
    with database.read() as c:
        before = c.execute(select(jobs.c.request).where(jobs.c.batch_id == first)).scalar_one()
        requests = c.execute(select(jobs.c.request).where(jobs.c.batch_id == again)).scalars().all()
        defaults = dict(c.execute(select(batches.c.id, batches.c.defaults)).all())
    assert len(requests) == 2
    for request in requests:
        assert request["sampling"] == {"max_tokens": 40, "stop": ["END"]}
        for part in ("accept", "constraint", "truncate_prompt"):
            assert request[part] == before[part]
    assert defaults[first].pop("temperature") == 0.5
    assert defaults[again] == defaults[first]
    assert {"accept", "constraint", "truncate_prompt", "stop"} <= set(defaults[first])


@pytest.fixture
def answered(submitted, finish, enter):
    """A batch that a worker with this setup has answered."""
    enter("w1", target_model="qwen", setup=SETUP)
    batch = submitted(1)
    finish(batch, succeeded=1)
    return batch


def test_like_says_that_other_models_run(helix, prompts, answered, enter, database):
    first = answered
    assert "was answered by" not in helix("submit", prompts(1), "--like", first).stderr
    with database.write() as c:
        workers.stop_worker(c, "w1", now())
    enter("w2", target_model="qwen", setup=SETUP | {"target": {"name": "qwen", "digest": "cd" * 32}})
    told = helix("submit", prompts(1), "--like", first).stderr
    assert f"Batch {first} was answered by qwen; 1 model here: qwen with other files." in told


def test_like_reads_the_other_batch_once(helix, prompts, answered, monkeypatch):
    first = answered
    calls = []
    read = HelixClient.manifest

    def noting(self, batch_id):
        calls.append(batch_id)
        return read(self, batch_id)

    monkeypatch.setattr(HelixClient, "manifest", noting)
    assert helix("submit", prompts(1), "--like", first).exit_code == 0
    assert calls == [first]


def test_like_says_nothing_of_a_worker_that_has_not_read_its_files_yet(helix, prompts, answered, enter, database):
    with database.write() as c:
        workers.stop_worker(c, "w1", now())
    enter("w2", target_model="qwen", setup=SETUP | {"target": {"name": "qwen"}, "digests": "not read yet"})
    assert "was answered by" not in helix("submit", prompts(1), "--like", answered).stderr
    with database.write() as c:
        workers.describe_worker(c, "w2", SETUP | {"target": {"name": "qwen", "digest": "cd" * 32}})
    assert "qwen with other files." in helix("submit", prompts(1), "--like", answered).stderr


def test_digests_that_are_not_read_yet_are_told(helix, submitted, finish, enter):
    enter("w1", setup={"target": {"name": "qwen"}, "digests": "not read yet"})
    batch = submitted(1)
    finish(batch, succeeded=1)
    assert "not read yet" in helix("manifest", batch).stdout


def test_like_a_batch_that_is_not_there(helix, prompts):
    result = helix("submit", prompts(1), "--like", "b-none")
    assert result.exit_code == 2
    assert "there is no batch 'b-none'" in result.stderr


def test_defaults_that_somebody_changed_are_refused_by_name(helix, prompts, submitted, database):
    batch = submitted(1)
    with database.write() as c:
        c.execute(batches.update().values(defaults={"accept": {"not_cut": "perhaps"}}))
    result = helix("submit", prompts(1), "--like", batch)
    assert result.exit_code == 2
    assert f"the defaults of batch {batch} cannot be repeated here (accept.not_cut" in result.stderr
