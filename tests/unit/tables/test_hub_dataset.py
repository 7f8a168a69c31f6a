"""Data sets of the hub as tables: which files are meant, what comes of them, and what is said where there are none."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants

from helix_jobs.errors import InputError
from helix_jobs.tables.hub_dataset import HubDataset
from helix_jobs.tables.opened_table import open_table
from helix_jobs.tables.read_options import ReadOptions
from tests.unit.engine.loading.local_hub import library_hub

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.unit.engine.loading.local_hub import LocalHub

CSV = b"id,text\n1,one\n2,two\n"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LocalHub]:
    with library_hub(monkeypatch, tmp_path / "cache") as made:
        yield made


def parquet(**columns: list[object]) -> bytes:
    written = io.BytesIO()
    pq.write_table(pa.table(columns), written)
    return written.getvalue()


def texts(place: str) -> tuple[str, list[object]]:
    with open_table(place, ReadOptions()) as table:
        assert table.name == place
        return table.reading, [row.values["text"] for row in table.rows()]


def test_the_only_table_needs_no_name(hub: LocalHub) -> None:
    hub.repositories["datasets/me/notes"] = {"README.md": b"# Notes", "notes.csv": CSV}
    assert texts("hf://datasets/me/notes") == ("CSV, UTF-8, commas between columns", ["one", "two"])
    assert hub.fetched == ["notes.csv"]
    assert texts("hf://datasets/me/notes/")[1] == ["one", "two"]
    assert hub.fetched == ["notes.csv"], "the hub's library keeps it"


def test_parts_of_a_table_are_read_in_their_order(hub: LocalHub) -> None:
    parts = {f"data/train-0000{n}-of-00003.parquet": parquet(text=[f"{n}a", f"{n}b"]) for n in (2, 0, 1)}
    hub.repositories["datasets/me/large"] = parts
    read = ("Parquet in 3 files", ["0a", "0b", "1a", "1b", "2a", "2b"])
    assert texts("hf://datasets/me/large") == read
    assert texts("hf://datasets/me/large/data/train-*.parquet") == read
    with open_table("hf://datasets/me/large", ReadOptions()) as table:
        assert [row.number for row in table.rows()] == [1, 2, 3, 4, 5, 6]
        assert [field.name for field in table.schema] == ["text"]


def test_of_several_tables_one_is_named(hub: LocalHub) -> None:
    hub.repositories["datasets/me/splits"] = {
        "data/test-00000-of-00001.parquet": parquet(text=["t"]),
        "data/train-00000-of-00002.parquet": parquet(text=["a"]),
        "data/train-00001-of-00002.parquet": parquet(text=["b"]),
    }
    with pytest.raises(
        InputError, match=r"several tables \(data/test-\*\.parquet, data/train-\*\.parquet\); name one"
    ) as said:
        texts("hf://datasets/me/splits")
    assert str(said.value).endswith("such as 'hf://datasets/me/splits/data/test-*.parquet'")
    assert texts("hf://datasets/me/splits/data/test-*.parquet")[1] == ["t"]
    assert texts("hf://datasets/me/splits@v1.0/data/train-*.parquet")[1] == ["a", "b"]


def test_parts_with_other_columns_are_no_table(hub: LocalHub) -> None:
    hub.repositories["datasets/me/odd"] = {"a.parquet": parquet(text=["a"]), "b.parquet": parquet(other=["b"])}
    with pytest.raises(InputError, match=r"b\.parquet has other columns than a\.parquet"):
        texts("hf://datasets/me/odd/*.parquet")


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("hf://datasets/me", "names no data set"),
        ("hf://datasets/me/../you", "names no data set"),
        ("hf://datasets/me/notes/../../x.csv", "names no data set"),
        ("hf://datasets/me/gone", "is not on the hub"),
        ("hf://datasets/me/notes/gone.csv", "no such file"),
        ("hf://datasets/me/notes/*.parquet", "no such table; it has notes.csv, other.csv"),
        ("hf://datasets/me/notes/*.csv", "only Parquet's are read as one table"),
        ("hf://datasets/me/gated/a.csv", "needs its licence accepted"),
    ],
)
def test_what_cannot_be_had_is_one_sentence(hub: LocalHub, place: str, said: str) -> None:
    hub.repositories["datasets/me/notes"] = {"notes.csv": CSV, "other.csv": CSV}
    hub.repositories["datasets/me/gated"] = {"a.csv": CSV}
    hub.gated.add("datasets/me/gated")
    with pytest.raises(InputError, match=said):
        texts(place)


@pytest.mark.thorough
def test_a_hub_that_does_not_answer_is_told(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError, match="could not be fetched from the hub"):
        texts("hf://datasets/me/notes")


def test_other_places_are_none_of_the_hub() -> None:
    assert HubDataset.parse("people.csv") is None
    found = HubDataset.parse("hf://datasets/a/b@main/c/d.csv")
    assert found == HubDataset("hf://datasets/a/b@main/c/d.csv", "a/b", "main", "c/d.csv")
