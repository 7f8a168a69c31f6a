"""Files that hold no lines of JSON: packed ones are read, others named with the command that converts them."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helix_jobs.errors import BadLine, InputError
from helix_jobs.intake.file_formats import open_lines
from helix_jobs.intake.lines import LineReader
from helix_jobs.new_job import NewJob
from tests.unit.intake.request_lines import GREEDY

LINES = b'{"prompt": "one"}\n{"prompt": "two"}\n'
BOM = b"\xef\xbb\xbf"


def gzipped(data: bytes) -> bytes:
    # Without the time of day: processes that share the tests have to name them alike.
    return gzip.compress(data, mtime=0)


def prompts(data: bytes) -> list[str | BadLine]:
    items = LineReader(GREEDY).read(open_lines(io.BytesIO(data)))
    return [item.request["prompt"] if isinstance(item, NewJob) else item for item in items]


@pytest.mark.parametrize(
    "data",
    [
        LINES,
        gzipped(LINES),
        gzipped(LINES[:18]) + gzipped(LINES[18:]),
        gzipped(LINES.replace(b"\n", b"\r")),
        BOM + LINES[:18] + BOM + LINES[18:],
        LINES.replace(b"\n", b"\r"),
        LINES.replace(b"\n", b"\r\r"),
        LINES.replace(b"\n", b"\r\n"),
        LINES.replace(b"\n", b"\r", 1),
        BOM + LINES.replace(b"\n", b"\r"),
        b"\n \n" + LINES,
    ],
)
def test_lines_are_read_however_they_are_packed_or_ended(data):
    assert prompts(data) == ["one", "two"]


@pytest.mark.parametrize("size", [1, 2, 3, 65_535, 65_536, 65_537, 200_000])
def test_carriage_returns_at_the_seams_of_pieces_end_one_line(size):
    data = b'{"prompt": "one"}\r' + b" " * size + b'\r\n{"prompt": "two"}\r\n'
    items = list(LineReader(GREEDY).read(open_lines(io.BytesIO(data))))
    assert [item.line for item in items] == [1, 3]


@pytest.mark.parametrize(
    ("data", "what", "command"),
    [
        (b"PK\x03\x04" + bytes(40), "a ZIP archive or an Excel workbook", "unzip -p FILE"),
        (b"SQLite format 3\0" + bytes(40), "an SQLite database", "sqlite3 FILE"),
        (b"%PDF-1.7\n" + bytes(40), "a PDF document", "pdftotext FILE -"),
        (LINES.decode().encode("utf-16"), "UTF-16 text", "iconv -f UTF-16 -t UTF-8 FILE"),
        (LINES.decode().encode("utf-16-le"), "UTF-16 text", "iconv -f UTF-16LE -t UTF-8"),
        (LINES.decode().encode("utf-16-be"), "UTF-16 text", "iconv -f UTF-16BE -t UTF-8"),
        (b"- prompt: Name a river\n- prompt: b\n", "YAML", "yaml.safe_load_all"),
        (b"---\nprompt: Name a river\n", "YAML", "yaml.safe_load_all"),
        (b"prompt: Name a river\nmax_tokens: 4\n", "YAML", "yaml.safe_load_all"),
        (b"Name a river.\nName another, please.\n", "plain text", "jq -Rc '{prompt: .}' FILE"),
        (b'[\n  {\n    "prompt": "a b"\n  }\n]', "one JSON document over several lines", "jq -c '.[]' FILE"),
        (b'[{"prompt": "a b"},\n{"prompt": "c"}]', "one JSON document over several lines", "jq -c '.[]' FILE"),
        (b'{\n  "prompt": "a b"\n}\n{\n  "prompt": "c"\n}\n', "JSON spread over several lines", "jq -c '.' FILE"),
        (b'{"prompt": "a b",\n"max_tokens": 4}\n', "JSON spread over several lines", "jq -c '.' FILE"),
        (b'{\n "messages": [\n  {"role"', "JSON spread over several lines", "jq -c '.' FILE"),
        (b'{\n "requests": [\n  {"role"', "JSON spread over several lines", "jq -c '.requests[]' FILE"),
        (gzipped(gzipped(LINES)), "compressed twice", "gunzip -c FILE | gunzip -c"),
        (bz2.compress(lzma.compress(LINES)), "compressed twice", "bzip2 -dc FILE | xz -dc"),
    ],
)  # fmt: skip
def test_another_format_is_one_sentence_with_the_command(data, what, command):
    with pytest.raises(InputError) as told:
        prompts(data)
    message = str(told.value)
    assert message.startswith(f"the input is {what}, not one JSON object a line; submit it with: ")
    assert command in message
    assert " | helix submit -" in message
    assert "PANDAS" not in message
    assert message.isprintable()


@pytest.mark.parametrize(
    ("data", "what", "value"),
    [
        (b"PAR1" + bytes(40), "Parquet", "COLUMN"),
        (b"ARROW1\0\0" + bytes(40), "Arrow (Feather)", "COLUMN"),
        (b'id,prompt\n1,"Name a river"\n', "CSV", "prompt"),
        (BOM + b'"id","prompt"\r\n1,"Name a river"\r\n', "CSV", "prompt"),
        (b"prompt\nName a river\n", "CSV", "prompt"),
        (b"text\tid\nName a river\t1\n", "tab-separated values", "text"),
        (b"id;First name\n1;Name a river\n", "CSV with semicolons", 'row["First name"]'),
        ("id,prompt\n1,Wie heißt er?\n".encode("latin-1"), "CSV", "prompt"),
    ],
)
def test_a_table_is_refused_with_the_command_that_asks_about_its_rows(data, what, value):
    with pytest.raises(InputError) as told:
        prompts(data)
    assert str(told.value) == (
        f"the input is {what}, not one JSON object a line; say what to ask about its rows: "
        f"helix submit - --prompt 'Summarise: {{{{ {value} }}}}'"
    )


GERMAN = "Grüße, wie heißt der Fluß?\nUnd „dieser“?\n"
RUSSIAN = "Как называется эта река?\nИ эта?\n"


@pytest.mark.skipif(not shutil.which("jq") or not shutil.which("iconv"), reason="jq or iconv is not installed")
@pytest.mark.parametrize(
    ("data", "what", "texts"),
    [
        (GERMAN.encode("cp1252"), "plain text in WINDOWS-1252", GERMAN.splitlines()),
        (GERMAN.replace("„", "").replace("“", "").encode("latin-1"), "plain text in WINDOWS-1252", None),
        ((("Name a river.\n" * 9000) + GERMAN).encode("cp1252"), "plain text in WINDOWS-1252", None),
        (RUSSIAN.encode("cp1251"), "plain text in another encoding than UTF-8", None),
        ("川の名前は?\n次は?\n".encode("shift_jis"), "plain text in another encoding than UTF-8", None),
        (GERMAN.encode() + b"na\xefve\n", "plain text in damaged UTF-8", [*GERMAN.splitlines(), "nave"]),
        (GERMAN.encode("utf-16"), "UTF-16 text", None),
        (GERMAN.encode("utf-32"), "UTF-32 text", None),
        (GERMAN.encode(), "plain text", GERMAN.splitlines()),
    ],
)
def test_text_in_another_encoding_is_converted_by_the_command(tmp_path, data, what, texts):
    path = tmp_path / "prompts.txt"
    path.write_bytes(data)
    with path.open("rb") as stream, pytest.raises(InputError) as told:
        open_lines(stream, str(path))
    assert str(told.value).startswith(f"{path} is {what}, not one JSON object a line; submit it with: ")
    if texts is not None:
        assert prompts(printed_by(str(told.value))) == texts


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("heißt".encode("cp1252"), "iconv -f WINDOWS-1252 -t UTF-8 FILE"),
        ("называется".encode("cp1251"), "iconv -f ENCODING -t UTF-8 FILE"),
        ("heißt".encode() + b"\xff", "iconv -c -f UTF-8 -t UTF-8 FILE"),
    ],
)
def test_a_line_in_another_encoding_names_the_command(line, command):
    good, bad = prompts(LINES[:18] + b'{"prompt": "' + line + b'"}\n')
    assert good == "one"
    assert isinstance(bad, BadLine)
    assert f"{command} | helix submit -" in bad.remedy


@pytest.mark.parametrize(
    ("tool", "options"),
    [("lz4", "-c"), ("iconv", "-f UTF-8 -t UTF-16")],
)
def test_the_command_unpacks(tmp_path, tool, options):
    if not shutil.which(tool):
        pytest.skip(f"{tool} is not installed")
    path = tmp_path / "its lines.jsonl"
    path.write_bytes(subprocess.run([tool, *options.split()], input=LINES, capture_output=True, check=True).stdout)
    with path.open("rb") as stream, pytest.raises(InputError) as told:
        open_lines(stream, str(path))
    assert prompts(printed_by(str(told.value))) == ["one", "two"]


def printed_by(message: str) -> bytes:
    """What the command of a message prints."""
    command = message.partition("with: ")[2].partition(" | helix submit -")[0]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(
        ["bash", "-c", command], check=True, capture_output=True, env={**os.environ, "PATH": path}
    ).stdout


@pytest.mark.parametrize(
    "data",
    [
        b"\x7fELF\x02\x01\x01" + bytes(60) + b"\n\0\0",
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
        b"prompts.jsonl" + bytes(87) + b'0000644\0{"prompt": "a"}\n',
        bytes(1000),
    ],
    ids=["program", "image", "tar", "zeros"],
)
def test_what_is_no_text_is_not_called_text(data):
    with pytest.raises(InputError) as told:
        prompts(data)
    assert str(told.value) == "the input is no text; give a file with one JSON object a line"


@pytest.mark.parametrize(
    "data",
    [
        b"hello",
        b'hello, world\n{"prompt": "a"}',
        b'{"prompt": "a"\n{"prompt": "b"}\n',
        b'{"prompt": "a",}\n{"prompt": "b"}\n',
        b'["a"]\n{"prompt": "b"}\n',
        b'{"prompt": "a\0\0b"}\n',
        b'{"prompt": ' + b"[" * 10_000 + b"\n",
        b'{"prompt": "' + b"x" * 100_000 + b'"}\n',
        b'{"prompt": "a", "metadata": {"k": "' + b"x" * 100_000 + b"\n",
        b"",
        b"\n" * 1000,
    ],
)
def test_a_file_of_lines_is_judged_line_by_line(data):
    prompts(data)


def test_the_name_stands_in_the_command_as_a_shell_reads_it():
    with pytest.raises(InputError) as told:
        open_lines(io.BytesIO(b"id,prompt\n1,a\n"), "it's a file.csv")
    message = str(told.value)
    assert message.startswith("it's a file.csv is CSV")
    command = message.partition("about its rows: ")[2]
    assert shutil.which("bash")
    arguments = subprocess.run(
        ["bash", "-c", f'show() {{ printf "%s\\n" "$@"; }}; {command.replace("helix", "show", 1)}'],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert arguments == ["submit", "it's a file.csv", "--prompt", "Summarise: {{ prompt }}"]


@pytest.mark.skipif(not shutil.which("jq"), reason="jq is not installed")
@pytest.mark.parametrize(
    "text",
    [
        json.dumps([{"prompt": "one"}, {"prompt": "two"}], indent=2),
        '{\n"prompt": "one"\n}\n{"prompt":\n"two"}\n',
        json.dumps({"requests": [{"prompt": "one"}, {"prompt": "two"}]}, indent=1),
        "one\ntwo\n",
        "- prompt: one\n- prompt: two\n  max_tokens: 4\n",
        "prompt: one\nmax_tokens: 4\n---\nprompt: two\n",
    ],
)
def test_the_command_prints_lines_that_are_taken(tmp_path, text):
    path = tmp_path / "prompts.jsonl"
    path.write_text(text)
    with path.open("rb") as stream, pytest.raises(InputError) as told:
        open_lines(stream, str(path))
    assert prompts(printed_by(str(told.value))) == ["one", "two"]
    assert path.read_text() == text


@pytest.mark.parametrize("damage", [lambda packed: packed[:-9], lambda packed: packed + b"tail", lambda p: p[:11]])
def test_damaged_gzip_is_one_sentence(damage):
    with pytest.raises(InputError, match="damaged or cut short"):
        prompts(damage(gzipped(LINES * 100)))


def test_a_small_file_that_unpacks_to_a_large_line_is_never_held():
    packed = gzipped(b'{"prompt": "' + b"x" * (64 * 1024 * 1024) + b'"}\n' + LINES)
    tracemalloc.start()
    try:
        too_long, *rest = prompts(packed)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert isinstance(too_long, BadLine)
    assert rest == ["one", "two"]
    assert peak < 16 * 1024 * 1024


@given(st.binary(max_size=200) | st.text(alphabet='{}[]",:\r\n\t ab1-', max_size=60).map(str.encode))
@settings(max_examples=400, deadline=None)
def test_no_bytes_crash_the_recogniser(data):
    """What is taken is the same bytes, with other ends of lines at most."""
    for packed in (data, gzipped(data)):
        try:
            lines = open_lines(io.BytesIO(packed))
        except InputError:
            continue
        read = b"".join(iter(lambda lines=lines: lines.readline(7), b""))
        assert read.replace(b"\n", b"") == data.replace(b"\r", b"").replace(b"\n", b"") or read == data
