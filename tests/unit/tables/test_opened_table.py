"""Whatever a table is, its rows come one by one, with the number by which a person finds them."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import re
import threading
import tracemalloc
import zipfile
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openpyxl import Workbook
from openpyxl.chart import BarChart, Reference

from helix_jobs.errors import ConfigurationError, InputError
from helix_jobs.tables.opened_table import open_table
from helix_jobs.tables.read_options import ReadOptions
from helix_jobs.tables.row import BadRow, Row
from helix_jobs.tables.text_form import NO_DELIMITER, delimiter_of
from tests.unit.tables.table_lines import rows_of, values_of

TWO = [(2, {"id": "1", "text": "one"}), (3, {"id": "2", "text": "two"})]


def reading(data: bytes, **options) -> str:
    with open_table(io.BytesIO(data), ReadOptions(**options)) as table:
        return table.reading


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"id,text\n1,one\n2,two\n", "CSV, UTF-8, commas between columns"),
        (b"\xef\xbb\xbfid,text\r\n1,one\r\n2,two", "CSV, UTF-8, commas between columns"),
        (b"id,text\r1,one\r2,two\r", "CSV, UTF-8, commas between columns"),
        (b"id\ttext\n1\tone\n2\ttwo\n", "CSV, UTF-8, tabs between columns"),
        (b"id;text\n1;one\n2;two\n", "CSV, UTF-8, semicolons between columns"),
        (b"id|text\n1|one\n2|two\n", "CSV, UTF-8, bars between columns"),
        ("id,text\n1,one\n2,two\n".encode("utf-16"), "CSV, UTF-16, commas between columns"),
        ("id,text\n1,one\n2,two\n".encode("utf-16-be"), "CSV, UTF-16, commas between columns"),
        (gzip.compress(b"id,text\n1,one\n2,two\n", mtime=0), "CSV, UTF-8, commas between columns in gzip"),
        (bz2.compress(b"id\ttext\n1\tone\n2\ttwo\n"), "CSV, UTF-8, tabs between columns in bzip2"),
        (lzma.compress(b"id;text\n1;one\n2;two\n"), "CSV, UTF-8, semicolons between columns in xz"),
    ],
)
def test_encoding_delimiter_and_packing_are_detected_and_told(data, told):
    assert values_of(data) == TWO
    assert reading(data) == told


def test_western_text_is_a_guess_that_is_told():
    data = "wort,lang\nFluß,4\nÖl,2\n".encode("cp1252")
    assert values_of(data) == [(2, {"wort": "Fluß", "lang": "4"}), (3, {"wort": "Öl", "lang": "2"})]
    assert reading(data) == "CSV, Windows-1252 by the look of it (--encoding names another), commas between columns"


def test_an_encoding_that_cannot_be_guessed_is_asked_for():
    data = "слово,язык\nНазывается,русский\n".encode("cp1251")  # noqa: RUF001  (Russian)
    with pytest.raises(InputError, match=r"name it with --encoding, such as cp1251"):
        rows_of(data)
    assert values_of(data, encoding="cp1251") == [(2, {"слово": "Называется", "язык": "русский"})]
    with pytest.raises(InputError, match="'klingon' is no encoding"):
        rows_of(data, encoding="klingon")
    with pytest.raises(InputError, match="'base64' is no encoding"):
        rows_of(data, encoding="base64")


def test_bytes_of_another_encoding_late_in_a_table_are_a_bad_row_with_its_column():
    data = b"id,text\n" + b"1,plain\n" * 200_000 + "2,Fluß\n".encode("cp1252") + b"3,plain\n"
    *good, bad, last = rows_of(data)
    assert len(good) == 200_000
    assert isinstance(bad, BadRow)
    assert (bad.number, bad.field, bad.reason) == (200_002, "text", "holds bytes that are not UTF-8")
    assert last == Row(200_003, {"id": "3", "text": "plain"})


@pytest.mark.parametrize(
    ("data", "options"),
    [
        ("Größe,text\n".encode("cp1252") + "1,Größe und Äpfel\n".encode() * 9, {}),
        ("Größe,text\n1,x\n".encode("cp1252"), {"encoding": "utf-8"}),
        (b"\xff\xfei\0d\0\x00\xd8,\0a\0\n\0", {}),
    ],
)
def test_a_header_in_another_encoding_than_the_rest_is_refused(data, options):
    with pytest.raises(InputError, match=r"the table's header holds bytes that are not UTF-.*with --encoding"):
        rows_of(data, **options)


def test_a_text_file_with_a_delimiter_is_a_table_by_wish(tmp_path):
    path = tmp_path / "data.txt"
    path.write_text("id;text\n1;one\n2;two\n")
    assert values_of(path, delimiter=";") == TWO
    assert list(values_of(path)[0][1]) == ["path", "name", "text"]


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
    assert reading(b'{"a": 1}\n', encoding="utf-8") == "JSON lines; --encoding has no effect on it"


def test_quotes_hold_delimiters_line_ends_and_quotes():
    data = b'id,text\n1,"a, b"\n2,"two\nlines"\n\n3,"say ""hi"""\n'
    assert values_of(data) == [
        (2, {"id": "1", "text": "a, b"}),
        (3, {"id": "2", "text": "two\nlines"}),
        (6, {"id": "3", "text": 'say "hi"'}),
    ]


def test_commas_belong_to_the_text_of_a_single_column():
    data = b'text\nHello, world\n"Quoted, too"\nNo more; really\n'
    assert [values["text"] for _, values in values_of(data)] == ["Hello, world", "Quoted, too", "No more; really"]
    assert "there is one column" in reading(data)


def test_a_delimiter_that_is_named_counts():
    data = b"a:b,c\n1:2,3\n"
    assert values_of(data) == [(2, {"a:b": "1:2", "c": "3"})]
    assert values_of(data, delimiter=":") == [(2, {"a": "1", "b,c": "2,3"})]
    assert values_of(b"a\tb\n1\t2\n", delimiter="tab") == [(2, {"a": "1", "b": "2"})]
    with pytest.raises(InputError, match=r"the delimiter ';;' is not one character"):
        rows_of(data, delimiter=";;")


def test_rows_of_another_width_and_open_quotes_are_bad_and_the_others_go_on():
    data = b'id,text\n1,one\n2\n3,a,b\n4,"x"y\n5,five\n6,"open\nuntil the end\n'
    found = rows_of(data)
    assert [row.values["id"] for row in found if isinstance(row, Row)] == ["1", "5"]
    assert [(row.number, row.reason.split(" (")[0]) for row in found if isinstance(row, BadRow)] == [
        (3, "has 1 cell, and the header names 2"),
        (4, "has 3 cells, and the header names 2"),
        (5, "cannot be read as a row"),
        (7, "begins a cell with a quote that is not closed: all lines to the end belong to it"),
    ]
    assert [row.original for row in found if isinstance(row, BadRow)][-1] == b'"6,\\"open\\nuntil the end"'


def test_a_quote_that_swallows_megabytes_ends_the_reading_with_its_line():
    data = b'id,text\n1,one\n2,"open' + b"x\n" * 3_000_000
    with pytest.raises(InputError, match=r"line 3: the row that begins here is longer than 4 MiB"):
        rows_of(data)


def test_headers():
    assert values_of(b",a\n0,x\n") == [(2, {"column_1": "0", "a": "x"})]
    with pytest.raises(InputError, match="two columns called 'a'"):
        rows_of(b"a,a\n1,2\n")
    with pytest.raises(InputError, match="the table is empty"):
        rows_of(b"")
    assert rows_of(b"a,b\n") == []


def test_json_lines_keep_their_types_and_their_lines():
    data = b'{"a": 1, "b": [true]}\n\n{"c": "x"}\nnope\n[1]\n'
    first, second, broken, listed = rows_of(data)
    assert (first, second) == (Row(1, {"a": 1, "b": [True]}), Row(3, {"c": "x"}))
    assert (broken.number, broken.original) == (4, b"nope")
    assert (listed.number, listed.reason) == (5, "is a list, not an object")


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


@pytest.fixture
def notes(tmp_path):
    folder = tmp_path / "notes"
    (folder / "deep").mkdir(parents=True)
    (folder / "b.txt").write_text("Bäume", encoding="utf-8")
    (folder / "a.md").write_bytes("Größe".encode("cp1252"))
    (folder / "deep" / "c.txt").write_text("deep", encoding="utf-16")
    (folder / ".hidden").write_text("no")
    (folder / "z.bin").write_bytes(bytes(10))
    return folder


def test_a_folder_has_a_row_for_each_text(notes):
    *good, bad = rows_of(notes)
    assert [tuple(row.values.values()) for row in good] == [
        ("a.md", "a.md", "Größe"),
        ("b.txt", "b.txt", "Bäume"),
        (str(Path("deep", "c.txt")), "c.txt", "deep"),
    ]
    assert (bad.number, bad.field, bad.reason) == (4, "text", "z.bin is no text")


def test_a_pattern_names_files_and_a_text_is_a_row_of_its_own(notes, tmp_path):
    pattern = str(notes / "**" / "*.txt")
    assert [row.values["name"] for row in rows_of(pattern)] == ["b.txt", "c.txt"]
    assert values_of(notes / "b.txt") == [(1, {"path": "b.txt", "name": "b.txt", "text": "Bäume"})]
    with pytest.raises(InputError, match="has no files"):
        rows_of(str(tmp_path / "*.none"))
    with pytest.raises(InputError, match="does not exist; name a table"):
        rows_of(tmp_path / "none.csv")


def test_a_pipe_that_gives_few_bytes_at_a_time_is_looked_at_whole():
    reader, writer = os.pipe()
    data = b"id;text\n1;one\n2;two\n"

    def trickle():
        with os.fdopen(writer, "wb", buffering=0) as pipe:
            pipe.writelines(data[place : place + 3] for place in range(0, len(data), 3))

    thread = threading.Thread(target=trickle)
    thread.start()
    with os.fdopen(reader, "rb", buffering=0) as pipe, open_table(pipe, ReadOptions()) as table:
        assert [row.number for row in table.rows()] == [2, 3]
    thread.join()


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


def test_a_large_table_is_never_held(tmp_path):
    path = tmp_path / "large.csv"
    path.write_bytes(b"id,text\n" + b"".join(b"%d,%s\n" % (number, b"x" * 500) for number in range(40_000)))
    tracemalloc.start()
    try:
        with open_table(path, ReadOptions()) as table:
            assert sum(1 for _ in table.rows()) == 40_000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10 * 1024 * 1024 < path.stat().st_size


cells = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)


@given(st.lists(st.tuples(cells, cells, cells), min_size=1, max_size=8), st.sampled_from(",;\t|"))
@settings(deadline=None)
def test_what_csv_writes_is_read_again(rows, delimiter):
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, delimiter=delimiter)
    writer.writerow(["one", "two", "three"])
    writer.writerows(rows)
    found = rows_of(buffer.getvalue().encode(), delimiter=delimiter)
    assert [tuple(row.values.values()) for row in found] == rows


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a,b\n1,2\n", ","),
        ("a;b\n1,5;2,5\n", ";"),
        ("a\tb\n1,2\t3\n", "\t"),
        ('a,b\n"x;y;z",2\n', ","),
        ("text\na, b\nc; d; e\n", NO_DELIMITER),
        ("a,b", ","),
        ("", NO_DELIMITER),
    ],
)
def test_the_delimiter_is_what_cuts_rows_as_the_header(text, expected):
    assert delimiter_of(text, is_whole=True) == expected


@given(st.binary(max_size=300))
@settings(deadline=None)
def test_no_bytes_are_anything_but_rows_or_an_error_of_helix(data):
    try:
        rows_of(data)
    except (InputError, ConfigurationError) as error:
        assert str(error)  # noqa: PT017  (either outcome is fine)
