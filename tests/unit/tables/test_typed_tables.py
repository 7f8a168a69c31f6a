"""Tables whose values have types: Parquet, Arrow, Excel, data frames and saved data sets."""

from __future__ import annotations

import gzip
import io
import json
import re
import zipfile
from datetime import date, datetime
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from openpyxl import Workbook
from openpyxl.chart import BarChart, Reference

from helix_jobs.errors import ConfigurationError, InputError
from helix_jobs.tables.opened_table import open_table
from helix_jobs.tables.read_options import ReadOptions
from helix_jobs.tables.row import Row
from tests.unit.tables.table_lines import rows_of, values_of


def test_options_without_effect_are_told(typed, book, tmp_path):
    path = tmp_path / "t.parquet"
    pq.write_table(typed, path)
    (tmp_path / "a.txt").write_text("x")
    every = {"encoding": "utf-8", "delimiter": ";", "sheet": "Sheet"}
    for source, told in (
        (path, "Parquet; --encoding and --delimiter and --sheet have no effect on it"),
        (book, "Excel, sheet Sheet; --encoding and --delimiter have no effect on it"),
        (b"a;b\n", "CSV, UTF-8, semicolons between columns; --sheet has no effect on it"),
        (typed, "a data frame; --encoding and --delimiter and --sheet have no effect on it"),
        ([{}], "mappings; --encoding and --delimiter and --sheet have no effect on it"),
        (str(tmp_path / "*.txt"), "text files; --delimiter and --sheet have no effect on it"),
    ):
        given = io.BytesIO(source) if isinstance(source, bytes) else source
        with open_table(given, ReadOptions(**every)) as table:
            assert table.reading == told
    with open_table(io.BytesIO(b'{"a": 1}\n'), ReadOptions(encoding="utf-8")) as table:
        assert table.reading == "JSON lines; --encoding has no effect on it"


@pytest.fixture
def typed():
    return pa.table(
        {
            "id": pa.array([1, 2], pa.int64()),
            "text": ["one", None],
            "day": [date(2026, 11, 30), None],
            "at": [datetime(2026, 11, 30, 6, 30), None],  # noqa: DTZ001  (a column without a time zone)
            "price": pa.array([Decimal("1.50"), None]),
            "tags": [["a"], []],
        }
    )


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([None, 2**62], pa.timestamp("us")),
        ([None, 10**8], pa.date32()),
        ([None, 2**62], pa.duration("s")),
        ([None, 1], pa.timestamp("s", "Nowhere/Here")),
    ],
)
def test_a_typed_value_that_python_has_no_form_for_names_its_row_and_column(values, kind):
    table = pa.table({"id": [1] * 2000, "when": pa.array([None] * 1998 + values, kind)})
    with pytest.raises(InputError, match=r"row 2000: the column when \(.*\) has a value that cannot be read here"):
        rows_of(table)


def test_the_index_that_pandas_adds_is_no_column(tmp_path):
    frame = pa.table({"__index_level_0__": [7, 9], "text": ["a", "b"], "__index_level_1__": [1, 2]})
    path = tmp_path / "t.parquet"
    pq.write_table(frame, path)
    for source in (frame, path):
        assert values_of(source) == [(1, {"text": "a"}), (2, {"text": "b"})]


@pytest.mark.parametrize("kind", ["parquet", "feather", "stream", "pipe", "packed"])
def test_typed_files_give_typed_values(kind, typed, tmp_path):
    path = tmp_path / "t"
    if kind in ("parquet", "pipe", "packed"):
        pq.write_table(typed, path)
    else:
        opener = pa.ipc.new_file if kind == "feather" else pa.ipc.new_stream
        with pa.OSFile(str(path), "wb") as sink, opener(sink, typed.schema) as writer:
            writer.write_table(typed)
    source = path if kind not in ("pipe", "packed") else path.read_bytes()
    if kind == "packed":
        source = gzip.compress(source)
    assert values_of(source) == [(n, row) for n, row in enumerate(typed.to_pylist(), start=1)]


def test_a_damaged_typed_file_is_one_sentence(typed, tmp_path):
    path = tmp_path / "t.parquet"
    pq.write_table(typed, path)
    for data in (path.read_bytes()[:-9], b"PAR1" + bytes(100), b"ARROW1\0\0" + bytes(40)):
        with pytest.raises(InputError, match="damaged or cut short"):
            rows_of(data)


def test_a_workbook_is_read_by_its_sheet(tmp_path):
    workbook = Workbook()
    workbook.active.title = "first"
    workbook.active.append(["id", None, "text"])
    workbook.active.append([1, None, "one"])
    workbook.active.append([None, None, None])
    workbook.active.append([2])
    other = workbook.create_sheet("other")
    other.append(["x"])
    other.append([True])
    workbook.create_sheet("empty")
    path = tmp_path / "book.xlsx"
    workbook.save(path)
    assert values_of(path) == [
        (2, {"id": 1, "column_2": None, "text": "one"}),
        (4, {"id": 2, "column_2": None, "text": None}),
    ]
    assert values_of(path.read_bytes(), sheet="other") == [(2, {"x": True})]
    with pytest.raises(InputError, match="no worksheet 'third'; it has first, other, empty"):
        rows_of(path, sheet="third")
    with pytest.raises(InputError, match="the sheet 'empty' is empty"):
        rows_of(path, sheet="empty")
    with pytest.raises(InputError, match="no Excel workbook"):
        rows_of(b"PK\x03\x04" + bytes(60))


def test_rows_of_a_workbook_and_of_a_csv_are_as_wide_as_the_header_or_bad_and_empty_ones_are_none(tmp_path):
    workbook = Workbook()
    for cells in (["a", "b"], [1, 2, None, "note"], ["", None, ""], [3, 4, None]):
        workbook.active.append(cells)
    path = tmp_path / "book.xlsx"
    workbook.save(path)
    bad, row = rows_of(path)
    assert (bad.number, bad.field, bad.reason) == (2, "(row)", "has 4 cells, and the header names 2")
    assert json.loads(bad.original) == [1, 2, None, "note"]
    assert (row.number, row.values) == (4, {"a": 3, "b": 4})
    bad, row = rows_of(b"a,b\n1,2,,note\n,,\n3,4\n,\n")
    assert (bad.number, bad.reason) == (2, "has 4 cells, and the header names 2")
    assert (row.number, row.values) == (4, {"a": "3", "b": "4"})


def changed_member(data: bytes, name: str, change) -> bytes:
    """A workbook with another content of one of its files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w") as new:
        for member in old.namelist():
            content = old.read(member)
            new.writestr(member, change(content) if member == name else content)
    return buffer.getvalue()


@pytest.fixture
def book():
    workbook = Workbook()
    workbook.active.append(["id", "text"])
    for number in range(1, 4):
        workbook.active.append([number, f"text {number}"])
    buffer = io.BytesIO()
    workbook.save(buffer)
    return buffer.getvalue()


SHEET = "xl/worksheets/sheet1.xml"


def test_a_sheet_that_states_wrong_dimensions_is_read_whole(book):
    wrong = changed_member(book, SHEET, lambda xml: xml.replace(b'ref="A1:B4"', b'ref="A1:A2"'))
    assert wrong != book
    assert values_of(wrong) == [(n + 1, {"id": n, "text": f"text {n}"}) for n in range(1, 4)]


def test_a_sheet_of_charts_is_none_of_rows():
    workbook = Workbook()
    chart = BarChart()
    workbook.active.append(["id"])
    workbook.active.append([1])
    chart.add_data(Reference(workbook.active, min_col=1, min_row=1, max_row=2))
    workbook.create_chartsheet("picture", 0).add_chart(chart)
    buffer = io.BytesIO()
    workbook.save(buffer)
    assert values_of(buffer.getvalue()) == [(2, {"id": 1})]
    with pytest.raises(InputError, match="no worksheet 'picture'; it has Sheet"):
        rows_of(buffer.getvalue(), sheet="picture")


@pytest.mark.parametrize(
    "change",
    [
        lambda xml: xml[: len(xml) * 2 // 3],
        lambda xml: xml.replace(b"<v>2</v>", b"<v>two</v>", 1),
        lambda xml: re.sub(rb't="n"><v>2<', b't="s"><v>999<', xml),
        lambda xml: xml.replace(b'r="A3"', b'r="?"'),
        lambda xml: xml[:0],
    ],
)
def test_a_damaged_sheet_is_one_sentence(book, change):
    damaged = changed_member(book, SHEET, change)
    assert damaged != book
    with pytest.raises(InputError, match=r"is damaged behind row|no Excel workbook that can be read"):
        rows_of(damaged)


def test_a_workbook_that_openpyxl_stumbles_over_is_one_sentence():
    workbook = Workbook()
    workbook.create_chartsheet("without a chart")
    buffer = io.BytesIO()
    workbook.save(buffer)
    with pytest.raises(InputError, match=r"no Excel workbook that can be read \(AttributeError\)"):
        rows_of(buffer.getvalue())


def test_a_frame_and_mappings_are_tables(typed):
    assert [row.values["id"] for row in rows_of(typed)] == [1, 2]
    assert rows_of([{"a": 1}, {"b": 2}]) == [Row(1, {"a": 1}), Row(2, {"b": 2})]
    (bad,) = rows_of(iter(["x"]))
    assert bad.reason == "is a str, not a mapping"
    for wrong in (5, {"a": 1}, b"a"):
        with pytest.raises(InputError, match="give a path, a binary stream, a data frame, or mappings"):
            open_table(wrong, ReadOptions())


@pytest.fixture
def dataset(typed, tmp_path):
    """What ``datasets`` writes by ``save_to_disk``, in two files."""
    folder = tmp_path / "set"
    folder.mkdir()
    names = [f"data-0000{number}-of-00002.arrow" for number in range(2)]
    for name in names:
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, typed.schema) as writer:
            writer.write_table(typed)
    state = {"_data_files": [{"filename": name} for name in names], "_indices_data_files": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def test_a_saved_data_set_is_read_from_all_its_files(dataset, typed):
    values = typed.to_pylist() * 2
    assert values_of(dataset) == list(enumerate(values, start=1))


def test_a_saved_data_set_that_cannot_be_read_says_what_to_do(dataset):
    (dataset / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(InputError, match=r"several splits \(train, test\); name one of them, such as .*train"):
        rows_of(dataset)
    (dataset / "dataset_dict.json").unlink()
    state = json.loads((dataset / "state.json").read_text())
    for damaged, said in (
        ({**state, "_indices_data_files": [{"filename": "x"}]}, "save it again behind flatten_indices"),
        ({**state, "_data_files": [{"filename": "../x.arrow"}]}, "names no files of the data set"),
        ({**state, "_data_files": [{"filename": "none.arrow"}]}, "none.arrow is missing"),
        ([], "names no files of the data set"),
    ):
        (dataset / "state.json").write_text(json.dumps(damaged))
        with pytest.raises(InputError, match=said):
            rows_of(dataset)


@pytest.mark.parametrize("library", ["pyarrow", "openpyxl"])
def test_a_library_that_is_missing_is_named_with_the_command(library, monkeypatch, typed, tmp_path):
    path = tmp_path / "t"
    if library == "pyarrow":
        pq.write_table(typed, path)
    else:
        Workbook().save(path)
    monkeypatch.setitem(__import__("sys").modules, library, None)
    with pytest.raises(ConfigurationError, match=rf'{library}.*pip install -e "\.\[tables\]"'):
        rows_of(path)
