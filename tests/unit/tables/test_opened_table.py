"""Whatever a table is, its rows come one by one, with the number by which a person finds them."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import lzma
import os
import threading
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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


@pytest.mark.thorough
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
    assert [tuple(row.values.values()) for row in found] == [row for row in rows if any(row)]


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


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("delimiter", [";", ",", "\t", ":"])
def test_a_line_before_the_header_may_name_the_delimiter(delimiter, end):
    lines = [f"sep={delimiter}", f"id{delimiter}text", f"1{delimiter}one", f"2{delimiter}two", ""]
    assert values_of(end.join(lines).encode("utf-8-sig")) == [(number + 1, row) for number, row in TWO]


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"%PDF-1.4\nsome,text\n", "a PDF document"),
        (b"SQLite format 3\0", "an SQLite database"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), "no text"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF\0\x01\n", "no text"),
        (gzip.compress(b"people.csv" + bytes(90) + b"0000644\0id,text\n1,one\n", mtime=0), "no text"),
    ],
)
def test_a_file_of_another_format_is_never_read_as_a_csv(data, what):
    with pytest.raises(InputError, match=f"the input is {what}, and no table; save it as CSV"):
        rows_of(data)


def test_a_delimiter_that_is_a_control_character_is_no_other_format():
    assert values_of(b"id\x1ftext\n1\x1fone\n2\x1ftwo\n", delimiter="\x1f") == TWO


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_lines_of_json_in_a_wide_encoding_are_no_csv(encoding):
    with pytest.raises(InputError, match=r"is UTF-(16|32) text, not one JSON object a line; submit it with: iconv"):
        rows_of('{"text": "one"}\n{"text": "two"}\n'.encode(encoding))


@given(st.binary(max_size=300))
@settings(deadline=None)
def test_no_bytes_are_anything_but_rows_or_an_error_of_helix(data):
    try:
        rows_of(data)
    except (InputError, ConfigurationError) as error:
        assert str(error)  # noqa: PT017  (either outcome is fine)
