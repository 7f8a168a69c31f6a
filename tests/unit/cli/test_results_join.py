"""``results --join``: answers as columns beside the table's own, which pandas, polars and DuckDB read."""

from __future__ import annotations

import csv
import json
from datetime import datetime

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helix_jobs.storage import results as storage_results

ASK = ("--prompt", "Mood of {{ text }}:")
SCHEMA = {
    "type": "object",
    "properties": {
        "mood": {"enum": ["good", "bad"]},
        "score": {"type": "integer"},
        "share": {"type": ["number", "null"]},
        "sure": {"type": "boolean"},
        "words": {"type": "array", "items": {"type": "string"}},
        "why": {"$ref": "#/$defs/why"},
    },
    "required": ["mood", "score", "share", "sure", "words", "why"],
    "$defs": {"why": {"type": "object", "properties": {"text": {"type": "string"}}}},
}


@pytest.fixture
def reviews(tmp_path):
    path = tmp_path / "reviews.csv"
    path.write_text('id;text;stars\n1;"two\nlines";5\n2;Schön;1\n3;Fair;3\n4;Fine;4\n', encoding="utf-8")
    return path


@pytest.fixture
def asked(home, helix, reviews):
    """``asked("--limit", "2")`` is a batch about the reviews."""

    def submit(*more, file=reviews):
        result = helix("submit", file, *ASK, *more)
        assert result.exit_code == 0, result.stderr
        return result.stdout.strip()

    return submit


def table_of(path) -> list[dict]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_answers_stand_beside_their_rows_in_the_tables_order(helix, asked, finish, reviews, tmp_path):
    batch = asked("--shuffle")
    finish(batch, succeeded=3, failed=1)
    out = tmp_path / "out.csv"
    result = helix("results", batch, "--join", reviews, "-o", out)
    assert result.exit_code == 0, result.stderr
    assert "4 results written to" in result.stderr
    rows = table_of(out)
    assert [row["id"] for row in rows] == ["1", "2", "3", "4"]
    assert list(rows[0])[:5] == ["id", "text", "stars", "output_text", "finish_reason"]
    assert rows[0]["text"] == "two\nlines"
    assert sorted(row["state"] for row in rows) == ["failed", *["succeeded"] * 3]
    (failed,) = (row for row in rows if row["state"] == "failed")
    assert (failed["output_text"], failed["error_code"]) == ("", "prompt_too_long")
    piped = [json.loads(line) for line in helix("results", batch, "--join", reviews).stdout.splitlines()]
    assert [row["text"] for row in piped] == [row["text"] for row in rows]


def test_only_rows_that_were_asked_about_unless_all_are_wanted(helix, asked, finish, reviews):
    batch = asked("--where", "stars|int > 3")
    finish(batch, succeeded=2)

    def ids(*more):
        lines = helix("results", batch, "--join", reviews, *more).stdout.splitlines()
        return [(json.loads(line)["id"], json.loads(line)["output_text"]) for line in lines]

    assert ids() == [("1", "An answer."), ("4", "An answer.")]
    assert ids("--all-rows") == [("1", "An answer."), ("2", None), ("3", None), ("4", "An answer.")]


def test_a_batch_that_was_limited_is_joined_to_the_whole_table(helix, asked, finish, reviews):
    batch = asked("--limit", "2")
    finish(batch, succeeded=2)
    lines = helix("results", batch, "--join", reviews, "--columns", "line,output_text").stdout.splitlines()
    assert [json.loads(line)["line"] for line in lines] == [2, 4]


def test_the_table_behind_the_last_row_that_was_asked_about_is_read_for_all_rows_alone(helix, asked, finish, tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("text\n" + "x\n" * 400)
    batch = asked("--limit", "2", file=path)
    finish(batch, succeeded=2)
    with path.open("a") as stream:
        stream.write('"open' + "x" * 5_000_000)
    result = helix("results", batch, "--join", path, "--columns", "line")
    assert [json.loads(line)["line"] for line in result.stdout.splitlines()] == [2, 3]
    assert f"Reading {path} as CSV, UTF-8" in result.stderr
    result = helix("results", batch, "--join", path, "--all-rows")
    assert result.exit_code == 2
    assert "the row that begins here is longer than 4 MiB" in result.stderr


@pytest.mark.parametrize("way", ["same", "link"])
def test_the_table_is_not_replaced_by_the_joined_one(helix, asked, finish, reviews, way):
    batch = asked()
    finish(batch, succeeded=4)
    out = reviews
    if way == "link":
        out = reviews.with_name("link.csv")
        out.symlink_to(reviews)
    before = reviews.read_bytes()
    result = helix("results", batch, "--join", reviews, "-o", out)
    assert result.exit_code == 2
    assert "is the table itself" in result.stderr
    assert reviews.read_bytes() == before


@pytest.mark.parametrize(
    ("source", "name", "rows"),
    [("notes", "a.txt", 3), ("notes", "sub/c.txt", 3), ("notes/*.txt", "b.txt", 2), ("notes/**", "sub/c.txt", 3)],
)
def test_a_text_that_is_a_row_is_not_replaced_by_joined_ones(helix, asked, finish, tmp_path, *, source, name, rows):
    (tmp_path / "notes" / "sub").mkdir(parents=True)
    for place in ("a.txt", "b.txt", "sub/c.txt"):
        (tmp_path / "notes" / place).write_text(place)
    table = tmp_path / source
    batch = asked(file=table)
    finish(batch, succeeded=rows)
    out = tmp_path / "notes" / name
    result = helix("results", batch, "--join", table, "--format", "csv", "-o", out)
    assert result.exit_code == 2
    assert "of the table, which the joined rows would change; name another place for them" in result.stderr
    assert out.read_text() == name


def test_a_folder_of_texts_gets_no_further_file(helix, asked, finish, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("a")
    batch = asked(file=tmp_path / "notes")
    finish(batch, succeeded=1)
    result = helix("results", batch, "--join", tmp_path / "notes", "-o", tmp_path / "notes" / "out.csv")
    assert result.exit_code == 2
    assert "out.csv lies among the files of the table" in result.stderr
    assert [path.name for path in (tmp_path / "notes").iterdir()] == ["a.txt"]


def test_a_column_is_named_once(helix, asked, finish, reviews):
    batch = asked()
    finish(batch, succeeded=4)
    result = helix("results", batch, "--join", reviews, "--columns", "line,output_text,line")
    assert result.exit_code == 2
    assert "--columns: 'line' is named twice; name each column once." in result.stderr


def test_numbers_that_json_does_not_have_are_null_in_its_lines_and_kept_elsewhere(helix, asked, finish, tmp_path):
    path = tmp_path / "t.parquet"
    numbers = [float("nan"), float("inf"), 0.5]
    pq.write_table(pa.table({"text": ["a", "b", "c"], "x": numbers, "xs": [[number] for number in numbers]}), path)
    batch = asked(file=path)
    finish(batch, succeeded=3)
    lines = helix("results", batch, "--join", path).stdout.splitlines()

    def refuse(constant):
        raise AssertionError(constant)

    rows = [json.loads(line, parse_constant=refuse) for line in lines]
    assert [(row["x"], row["xs"]) for row in rows] == [(None, [None]), (None, [None]), (0.5, [0.5])]
    assert helix("results", batch, "--join", path, "-o", tmp_path / "out.csv").exit_code == 0
    assert [(row["x"], row["xs"]) for row in table_of(tmp_path / "out.csv")] == [
        ("nan", "[null]"),
        ("inf", "[null]"),
        ("0.5", "[0.5]"),
    ]


def test_bytes_are_kept_in_typed_files_and_refused_elsewhere(helix, asked, finish, tmp_path):
    path = tmp_path / "t.parquet"
    table = pa.table({"text": ["a"], "picture": pa.array([b"\xff\x00"])})
    pq.write_table(table, path)
    batch = asked("--select", "text", file=path)
    finish(batch, succeeded=1)
    out = tmp_path / "out.parquet"
    assert helix("results", batch, "--join", path, "-o", out).exit_code == 0
    assert pq.read_table(out).column("picture").to_pylist() == [b"\xff\x00"]
    for name in ("out.csv", "out.jsonl"):
        result = helix("results", batch, "--join", path, "-o", tmp_path / name)
        assert result.exit_code == 2
        assert "the column picture holds bytes that are no text" in result.stderr
        assert not (tmp_path / name).exists()


@pytest.mark.parametrize(
    ("options", "without"),
    [((), ["request", "logprobs", "prompt_logprobs"]), (("--columns", "prompt,logprobs"), ["prompt_logprobs"])],
)
def test_answers_are_read_once_and_only_what_columns_need(helix, unnested_batch, monkeypatch, *, options, without):
    calls = []
    read = storage_results.iter_results

    def noting(*args, **kwargs):
        calls.append(kwargs["without"])
        return read(*args, **kwargs)

    monkeypatch.setattr(storage_results, "iter_results", noting)
    result = helix("results", unnested_batch, "--join", "reviews.csv", "--unnest", *options)
    assert result.exit_code == 0, result.stderr
    assert calls == [without]
    (first, *_) = map(json.loads, result.stdout.splitlines())
    assert first["mood"] == "good"
    if options:
        assert first["prompt"] == "Mood of two\nlines:"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text.replace("Fair", "Foul"), "its rows are others, or it is read otherwise"),
        (lambda text: text + "5;More;1\n", "it has more than the 4 rows that were read then"),
        (lambda text: text.replace("4;Fine;4\n", ""), "it has 3 rows, and 4 were read then"),
        (lambda text: text.replace("text", "texts"), "its rows are others, or it is read otherwise"),
    ],
)
def test_another_table_is_refused_and_nothing_is_written(helix, asked, reviews, *, change, said):
    batch = asked()
    out = reviews.with_name("out.csv")
    reviews.write_text(change(reviews.read_text("utf-8")), encoding="utf-8")
    result = helix("results", batch, "--join", reviews, "-o", out)
    assert result.exit_code == 2
    assert f"this is not the table that batch {batch} was submitted from: {said}" in result.stderr
    assert not out.exists()


def test_columns_of_the_same_name_get_a_prefix(helix, asked, finish, tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": "x", "state": "Ohio", "n": 1}\n{"text": "y", "n": 2.5}\n')
    batch = asked(file=path)
    finish(batch, succeeded=2)
    result = helix("results", batch, "--join", path)
    assert result.exit_code == 2
    assert "the table has a column 'state', and so have the answers" in result.stderr
    first, second = helix("results", batch, "--join", path, "--prefix", "answer_").stdout.splitlines()
    assert (json.loads(first)["state"], json.loads(first)["answer_state"]) == ("Ohio", "succeeded")
    assert (json.loads(second)["state"], json.loads(second)["n"]) == (None, 2.5)


def answer(**changes) -> str:
    return json.dumps(
        {"mood": "good", "score": 3, "share": 0.5, "sure": True, "words": ["a"], "why": {"text": "x"}} | changes
    )


@pytest.fixture
def unnested_batch(asked, finish, tmp_path):
    """A batch about the reviews whose answers are held to a schema."""
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps(SCHEMA))
    batch = asked("--json-schema", schema)
    finish(batch, succeeded=1, text=answer())
    finish(batch, succeeded=1, text=answer(mood="bad", score=4.0, share=None, words=[]))
    finish(batch, succeeded=1, text=answer()[:20])
    finish(batch, failed=1)
    return batch


def test_a_property_with_the_name_of_a_column_is_named(helix, asked, finish, reviews, tmp_path):
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object", "properties": {"state": {"type": "string"}}}')
    batch = asked("--json-schema", schema)
    finish(batch, succeeded=4)
    result = helix("results", batch, "--join", reviews, "--unnest")
    assert result.exit_code == 2
    assert "the schema has a property 'state', and so have the results a column; choose others with" in result.stderr


@pytest.fixture
def unnested(helix, unnested_batch, reviews, tmp_path):
    """A Parquet file of the reviews with their answers taken apart."""
    out = tmp_path / "out.parquet"
    result = helix("results", unnested_batch, "--join", reviews, "--unnest", "-o", out)
    assert result.exit_code == 0, result.stderr
    return out


def test_answers_under_a_schema_become_typed_columns(unnested):
    table = pq.read_table(unnested)
    types = {name: str(table.schema.field(name).type) for name in SCHEMA["properties"]}
    expected = {"mood": "string", "score": "int64", "share": "double", "sure": "bool", "why": "string"}
    words = types.pop("words")
    assert types == expected
    assert words.startswith("list<")
    assert table.column("mood").to_pylist() == ["good", "bad", None, None]
    assert table.column("score").to_pylist() == [3, 4, None, None]
    assert table.column("words").to_pylist() == [["a"], [], None, None]
    assert json.loads(table.column("why").to_pylist()[0]) == {"text": "x"}
    assert table.column("output_text").to_pylist()[2] == answer()[:20]


def test_pandas_polars_and_duckdb_read_it(unnested, tmp_path):
    frame = pd.read_parquet(unnested)
    assert frame["score"].sum() == 7
    assert frame["text"].tolist()[1] == "Schön"
    assert frame["state"].tolist() == ["succeeded"] * 3 + ["failed"]
    again = pl.read_parquet(unnested)
    assert again["score"].dtype == pl.Int64
    assert again.filter(pl.col("sure"))["mood"].to_list() == ["good", "bad"]
    (counted,) = duckdb.sql(f"SELECT count(*), sum(score), max(len(words)) FROM '{unnested}'").fetchall()  # noqa: S608  (a path of this test)
    assert counted == (4, 7, 1)


def test_the_other_formats_are_read_too(helix, asked, finish, reviews, tmp_path):
    batch = asked()
    finish(batch, succeeded=4)
    for name in ("o.csv", "o.jsonl", "o.arrow", "o.feather"):
        assert helix("results", batch, "--join", reviews, "-o", tmp_path / name).exit_code == 0
    texts = ["two\nlines", "Schön", "Fair", "Fine"]
    assert pd.read_csv(tmp_path / "o.csv")["text"].tolist() == texts
    assert pl.read_ndjson(tmp_path / "o.jsonl")["text"].to_list() == texts
    assert pl.read_ipc(tmp_path / "o.arrow")["text"].to_list() == texts
    assert pd.read_feather(tmp_path / "o.feather")["text"].tolist() == texts
    for name in ("o.csv", "o.jsonl"):
        found = duckdb.sql(f"SELECT text FROM '{tmp_path / name}'").fetchall()  # noqa: S608  (a path of this test)
        assert found == [(text,) for text in texts]


def test_a_typed_table_keeps_its_types(helix, asked, finish, tmp_path):
    path = tmp_path / "t.parquet"
    table = pa.table(
        {
            "text": ["a", "b"],
            "at": pa.array([datetime(2026, 11, 30), None], pa.timestamp("ms")),  # noqa: DTZ001  (a column without a zone)
            "small": pa.array([1, 2], pa.int8()),
            "nested": [{"x": [1]}, {"x": []}],
        }
    )
    pq.write_table(table, path)
    batch = asked(file=path)
    finish(batch, succeeded=2)
    out = tmp_path / "out.parquet"
    assert helix("results", batch, "--join", path, "-o", out).exit_code == 0
    assert pq.read_table(out).select(table.column_names).equals(table)
    assert helix("results", batch, "--join", path, "-o", tmp_path / "out.csv").exit_code == 0
    assert table_of(tmp_path / "out.csv")[0]["nested"] == '{"x": [1]}'


@pytest.mark.thorough(fast=5)
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--unnest"], "--unnest needs --join"),
        (["--prefix", "a"], "--prefix needs --join"),
        (["--sheet", ""], "--sheet needs --join"),
        (["--join", "reviews.csv", "--columns", "nothing"], "'nothing' is no column of results"),
        (["--join", "reviews.csv", "--unnest"], "is held to a JSON schema with properties"),
        (["--join", "reviews.csv", "--format", "openai"], "--join writes jsonl, csv, parquet or arrow"),
        (["--join", "reviews.csv", "--order", "completion"], "in the table's order"),
        (["--join", "none.csv"], "does not exist"),
        (["--format", "arrow"], "--format arrow needs --join"),
        (["-o", "x.arrow"], "says no format that Helix writes"),
    ],
)
def test_what_cannot_be_is_one_clear_line(helix, asked, finish, options, said):
    batch = asked()
    finish(batch, succeeded=1)
    result = helix("results", batch, *options)
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split())


def test_a_batch_of_lines_has_no_table(helix, submitted, prompts):
    batch = submitted(2)
    result = helix("results", batch, "--join", prompts(2))
    assert result.exit_code == 2
    assert "was submitted as lines, not as a table" in result.stderr


def test_several_answers_to_a_row_have_a_row_each(helix, asked, finish, reviews):
    batch = asked("--limit", "1", "--n", "2", "--temperature", "1")
    finish(batch, succeeded=1, choices=2)
    lines = helix("results", batch, "--join", reviews, "--columns", "choice").stdout.splitlines()
    assert [(json.loads(line)["id"], json.loads(line)["choice"]) for line in lines] == [("1", 0), ("1", 1)]
