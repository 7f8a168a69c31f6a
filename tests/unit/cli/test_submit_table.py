"""``submit`` of a table: what is asked about each row, what the command says of the table, and its bad rows."""

from __future__ import annotations

import json

import pytest
from sqlalchemy import select

from helix_jobs.storage.schema import batches, jobs
from tests.unit.engine.loading.local_hub import library_hub


@pytest.fixture
def reviews(tmp_path):
    path = tmp_path / "reviews.csv"
    path.write_text("id;stars;text\na;5;Good\nb;1;Bad\nc;3;Fair\n", encoding="utf-8")
    return path


@pytest.fixture
def stored(database):
    """``stored(batch)``: line, custom_id and request of each job."""

    def read(batch):
        with database.read() as c:
            query = select(jobs.c.line, jobs.c.custom_id, jobs.c.request).where(jobs.c.batch_id == batch)
            return [tuple(row) for row in c.execute(query.order_by(jobs.c.line))]

    return read


def test_a_table_and_a_prompt_make_a_batch(helix, reviews, stored):
    result = helix("submit", reviews, "--prompt", "Mood of {{ text }}:", "--id", "id", "--max-tokens", "4")
    assert result.exit_code == 0, result.stderr
    assert f"Reading {reviews} as CSV, UTF-8, semicolons between columns" in result.stderr
    lines = stored(result.stdout.strip())
    assert [(line, name, request["prompt"]) for line, name, request in lines] == [
        (2, "a", "Mood of Good:"),
        (3, "b", "Mood of Bad:"),
        (4, "c", "Mood of Fair:"),
    ]
    assert {request["sampling"]["max_tokens"] for *_, request in lines} == {4}


def test_standard_input_and_a_first_argument_that_is_a_file(helix, reviews, stored):
    result = helix("-", "--prompt", "{{ text }}", stdin=reviews.read_bytes())
    assert [request["prompt"] for *_, request in stored(result.stdout.strip())] == ["Good", "Bad", "Fair"]
    result = helix(reviews, "--select", "prompt=text,custom_id=id")
    assert [(name, request["prompt"]) for _, name, request in stored(result.stdout.strip())] == [
        ("a", "Good"),
        ("b", "Bad"),
        ("c", "Fair"),
    ]


def test_files_of_templates(helix, reviews, stored, tmp_path):
    template = tmp_path / "ask.j2"
    template.write_text("\ufeff{% if stars|int > 2 %}\nPraise\n{% endif %}\n{{ text }}\n", encoding="utf-8")
    result = helix("submit", reviews, "--template", template, "--system", "Be {{ id }}.", "--limit", "1")
    ((_, _, request),) = stored(result.stdout.strip())
    assert request["messages"] == [
        {"role": "system", "content": "Be a."},
        {"role": "user", "content": "Praise\nGood"},
    ]
    messages = tmp_path / "messages.json"
    messages.write_text('[{"role": "user", "content": "{{ text }}?"}]')
    result = helix("submit", reviews, "--messages", messages, "--where", "stars == '1'")
    ((_, _, request),) = stored(result.stdout.strip())
    assert request["messages"] == [{"role": "user", "content": "Bad?"}]


def test_a_folder_and_a_pattern(helix, stored, tmp_path):
    folder = tmp_path / "notes"
    folder.mkdir()
    for name in ("a.txt", "b.txt", "c.md"):
        (folder / name).write_text(f"text of {name}")
    for source, names in ((folder, "abc"), (folder / "*.txt", "ab")):
        result = helix("submit", source, "--prompt", "{{ name[0] }}: {{ text }}", "--chat")
        assert result.exit_code == 0, result.stderr
        assert [request["messages"][0]["content"][0] for *_, request in stored(result.stdout.strip())] == list(names)


def test_bad_rows_are_listed_and_corrected_rows_are_taken(helix, reviews, stored, tmp_path):
    ask = ("--prompt", "{{ text }}{{ 1 // (stars|int - 1) }}")
    result = helix("submit", reviews, *ask, "--json")
    assert result.exit_code == 2
    error = json.loads(result.stdout)["error"]
    (bad,) = error["invalid"]
    assert (bad["line"], bad["field"]) == (3, "template")
    assert "ZeroDivisionError" in bad["reason"]
    assert helix("submit", reviews, *ask, "--skip-invalid").exit_code == 0
    rejects = tmp_path / "reviews.csv.invalid.jsonl"
    assert json.loads(rejects.read_text()) == {"id": "b", "stars": "1", "text": "Bad"}
    rejects.write_text(rejects.read_text().replace('"1"', '"2"'))
    again = helix("submit", rejects, *ask)
    assert [request["prompt"] for *_, request in stored(again.stdout.strip())] == ["Bad1"]


def test_the_same_table_under_one_key_is_one_batch(helix, reviews):
    def submit(*more):
        ask = ("--prompt", "{{ text }}", "--shuffle", "--limit", "2", "--idempotency-key", "k")
        return helix("submit", reviews, *ask, *more)

    assert submit().stdout == submit().stdout
    assert submit("--where", "id != 'c'").exit_code == 2


def test_what_was_read_is_stored_with_the_batch(helix, reviews, database):
    batch = helix("submit", reviews, "--prompt", "{{ text }}", "--temperature", "0.5").stdout.strip()
    with database.read() as c:
        row = c.execute(select(batches.c.defaults, batches.c.source).where(batches.c.id == batch)).one()
    assert row.source == str(reviews)
    table = row.defaults.pop("table")
    assert row.defaults == {"temperature": 0.5}
    assert (table["rows"], table["is_whole"], len(table["digest"])) == (3, True, 32)


@pytest.mark.thorough(fast=5)
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--prompt", "x", "--template", "y"], "--prompt and --template exclude each other"),
        (["--template", "none.j2"], "--template none.j2 cannot be read (No such file or directory)"),
        (["--messages", "reviews.csv"], "--messages reviews.csv is no JSON"),
        (["--chat"], "give --prompt or --template"),
        (["--prompt", ""], "prompt"),
        (["--where", ""], "the template or expression cannot be read"),
        (["--prompt", "x", "--select", "=a"], "give COLUMN or NAME=COLUMN"),
        (["--prompt", "x", "--limit", "0"], "--limit"),
        (["--prompt", "x", "--delimiter", "xx"], "is not one character"),
        (["--prompt", "{{ x"], "the template or expression cannot be read: line 1"),
        (["--prompt", "x", "--id", "stars_"], "--id stars_: the table has no such column; did you mean stars?"),
    ],
)
def test_what_cannot_be_is_one_clear_line(helix, reviews, options, said):
    result = helix("submit", reviews.name, *options)
    assert result.exit_code == 2
    assert said in result.stderr
    assert json.loads(helix("list", "--json").stdout) == []


def test_a_table_without_a_question_says_what_to_add(helix, reviews, tmp_path):
    result = helix("submit", reviews.name)
    assert result.exit_code == 2
    assert "helix submit reviews.csv --prompt 'Summarise: {{ text }}'" in result.stderr
    result = helix("submit", tmp_path / "*.csv")
    assert "names several files; say what to ask about each" in result.stderr
    assert helix("submit", tmp_path).exit_code == 2


def test_a_data_set_of_the_hub_is_submitted_by_its_name(helix, monkeypatch, tmp_path):
    with library_hub(monkeypatch, tmp_path / "cache") as hub:
        hub.repositories["datasets/me/notes"] = {"notes.csv": b"id,text\n1,one\n2,two\n"}
        place = "hf://datasets/me/notes"
        done = helix("submit", place, "--prompt", "Say {{ text }}", "--json")
        assert done.exit_code == 0, done.stderr
        assert json.loads(done.stdout)["total"] == 2
        assert json.loads(helix("list", "--json").stdout)[0]["source"] == place
        refused = helix("submit", place)
        assert refused.exit_code == 2
        assert "is a table; say what to ask about each" in refused.stderr
