"""Data frames of pandas, polars, pyarrow and DuckDB go in with a template and come out with the answers."""

from __future__ import annotations

import subprocess
import sys

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from helix_jobs.errors import ConfigurationError, InputError
from helix_jobs.results.join_options import JoinOptions
from helix_jobs.tables.ask import TableAsk
from tests.integration.client_helpers import prompts, rows, work

COLUMNS = {"text": ["one", "two", None], "stars": [5, 1, 3]}
FRAMES = {
    "pandas": lambda: pd.DataFrame(COLUMNS),
    "polars": lambda: pl.DataFrame(COLUMNS),
    "pyarrow": lambda: pa.table(COLUMNS),
    "duckdb": lambda: duckdb.sql("SELECT * FROM (VALUES ('one', 5), ('two', 1), (NULL, 3)) AS t(text, stars)"),
}


@pytest.mark.thorough(fast=3)
@pytest.mark.parametrize("library", FRAMES)
def test_a_frame_goes_in_and_comes_back_with_its_answers(library, client, helix):
    frame = FRAMES[library]()
    batch = client.submit(frame, template="Mood of {{ text }}, {{ stars + 1 }}:").batch_id
    assert [job.request["prompt"] for job in rows(helix)] == ["Mood of one, 6:", "Mood of two, 2:", "Mood of , 4:"]
    work(helix, fail_lines=frozenset({2}))
    joined = client.joined(batch, frame).to_pandas()
    assert joined["stars"].tolist() == [5, 1, 3]
    assert joined["state"].tolist() == ["succeeded", "failed", "succeeded"]
    assert joined["output_text"].tolist()[0] == "answer to line 1"
    again = client.joined(batch, frame, JoinOptions(columns=("output_text", "line"), prefix="a_")).to_polars()
    assert again.columns == ["text", "stars", "a_output_text", "a_line"]
    assert again["a_line"].to_list() == [1, 2, 3]
    with pytest.raises(InputError, match="this is not the table"):
        client.joined(batch, pa.table({"text": ["one", "two", None], "stars": [5, 1, 4]}))


def test_a_frame_of_fields_needs_no_template(client, helix):
    client.submit(pl.DataFrame({"prompt": ["a", "b"], "max_tokens": [3, None]}))
    assert [(job.request["prompt"], job.request["sampling"]) for job in rows(helix)] == [
        ("a", {"max_tokens": 3}),
        ("b", {}),
    ]


def test_results_are_frames_with_the_columns_of_result_files(client, helix):
    batch = client.submit(prompts(3, metadata={"k": 1})).batch_id
    empty = client.results(batch).to_arrow()
    assert empty.num_rows == 0
    work(helix, fail_lines=frozenset({2}))
    frame = client.results(batch).to_pandas()
    assert frame["custom_id"].tolist() == ["id-0", "id-2"]
    assert frame["metadata"].tolist() == ['{"k": 1}'] * 2
    assert client.results(batch, include_failed=True).to_polars()["error_code"].to_list() == [
        None,
        "prompt_too_long",
        None,
    ]
    results = client.results(batch)
    assert next(results).custom_id == "id-0"
    assert results.to_arrow().column("custom_id").to_pylist() == ["id-2"]
    assert empty.schema == client.results(batch).to_arrow().schema


def test_rows_of_mappings_are_a_table_too(client, helix):
    table = [{"text": "a", "n": 1}, {"text": "b", "n": 2}]
    readings: list[str] = []
    batch = client.submit(
        table, table=TableAsk(prompt="{{ text }}", where="n > 1"), on_reading=readings.append
    ).batch_id
    work(helix)
    (row,) = client.joined(batch, table).rows()
    assert (row["text"], row["n"], row["output_text"]) == ("b", 2, "answer to line 2")
    assert readings == ["mappings"]
    with pytest.raises(InputError, match="a table is read twice"):
        client.joined(batch, iter(table))


def test_two_ways_to_ask_exclude_each_other(client):
    with pytest.raises(ConfigurationError, match="template is short for a table"):
        client.submit([{"a": 1}], template="x", table=TableAsk(prompt="x"))


def test_a_library_that_is_missing_is_named(client, helix, monkeypatch):
    batch = client.submit(prompts(1)).batch_id
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(ConfigurationError, match="polars is not installed; run pip install polars"):
        client.results(batch).to_polars()


def test_no_library_of_frames_is_imported_unless_it_is_asked_for(tmp_path):
    script = """
import sys
from helix_jobs import HelixClient
from helix_jobs.settings import Settings
with HelixClient(Settings.from_environment({"HELIX_HOME": sys.argv[1]})) as client:
    batch = client.submit([{"text": "a"}], template="{{ text }}").batch_id
    list(client.results(batch))
    list(client.joined(batch, [{"text": "a"}]).rows())
print(sorted({"pandas", "polars", "duckdb", "pyarrow", "torch"} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True, timeout=300
    )
    assert done.stdout.splitlines()[-1] == "[]"
