"""The form of an upload: whatever its pieces, the same file; whatever is wrong with it, a refusal with a remedy."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helix_jobs.api.problems import Problem
from helix_jobs.api.upload_form import UploadForm, fit_name

BOUNDARY = b"a-boundary"
TYPE = f"multipart/form-data; boundary={BOUNDARY.decode()}"
PURPOSE = b'Content-Disposition: form-data; name="purpose"\r\n\r\nbatch'


def file_part(content: bytes, name: bytes = b"lines.jsonl") -> bytes:
    disposition = b'Content-Disposition: form-data; name="file"; filename="' + name + b'"'
    return disposition + b"\r\nContent-Type: application/jsonl\r\n\r\n" + content


def body(*parts: bytes) -> bytes:
    return b"".join(b"--" + BOUNDARY + b"\r\n" + part + b"\r\n" for part in parts) + b"--" + BOUNDARY + b"--\r\n"


def read(data: bytes, size: int = 1 << 16, limit: int = 1 << 20) -> tuple[UploadForm, bytes]:
    form = UploadForm(TYPE, limit)
    content = b"".join(form.feed(data[start : start + size]) for start in range(0, len(data), size))
    form.finish()
    return form, content


@given(st.binary(min_size=1, max_size=300), st.integers(1, 400), st.permutations([0, 1]))
def test_the_file_is_the_same_whatever_the_pieces(content: bytes, size: int, order: list[int]) -> None:
    content = content.replace(BOUNDARY, b"") or b"x"
    parts = [PURPOSE, file_part(content)]
    form, found = read(body(*(parts[place] for place in order)), size)
    assert found == content
    assert form.size == len(content)
    assert (form.fields, form.filename) == ({"purpose": "batch"}, "lines.jsonl")


def test_content_that_looks_like_a_boundary_is_content() -> None:
    content = b"\r\n--a-boundar\r\n--\r\n--a-boundarx--\r\n"
    for size in (1, 2, 3, 7, 1000):
        assert read(body(PURPOSE, file_part(content)), size)[1] == content


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\Windows\\lines.jsonl", "lines.jsonl"),
        ("", "upload"),
        ("a/", "upload"),
        ("  \t ", "upload"),
        ("zeilen-ü-\u65e5.jsonl", "zeilen-ü-\u65e5.jsonl"),
        ("a\x00b\r\nSet-Cookie: x\x1b[2J\u202egnp.exe", "a_b__Set-Cookie: x_[2J_gnp.exe"),
        ("x" * 9000, "x" * 255),
    ],
)
def test_a_hostile_name_is_made_fit(given: str, kept: str) -> None:
    assert fit_name(given) == kept


def test_a_name_that_is_no_utf_8_is_made_fit() -> None:
    form, _ = read(body(PURPOSE, file_part(b"x", b"\xff\xfe.jsonl")))
    assert form.filename == "\ufffd\ufffd.jsonl"


@pytest.mark.parametrize(
    ("data", "status", "words"),
    [
        (body(PURPOSE), 400, "file: is missing"),
        (body(PURPOSE, file_part(b"")), 400, "file: is empty"),
        (body(PURPOSE, file_part(b"x"))[:-20], 400, "cut off"),
        (body(PURPOSE, file_part(b"x"), file_part(b"y")), 400, "file: stands twice"),
        (body(PURPOSE, PURPOSE, file_part(b"x")), 400, "purpose: stands twice"),
        (body(PURPOSE.replace(b"purpose", b"porpoise"), file_part(b"x")), 400, "porpoise: is not a field"),
        (body(PURPOSE + b"x" * 2000, file_part(b"x")), 400, "purpose: is too long"),
        (body(b"Content-Disposition: form-data\r\n\r\nbatch", file_part(b"x")), 400, "upload: is not a field"),
        (body(PURPOSE, file_part(b"x" * 5001)), 413, "HELIX_MAX_UPLOAD_MB"),
        (body(b"X: " + b"y" * 100_000 + b"\r\n" + PURPOSE, file_part(b"x")), 400, "malformed"),
        (b"no form at all", 400, "malformed"),
        (b"", 400, "cut off"),
    ],
)
def test_a_bad_form_is_refused(data: bytes, status: int, words: str) -> None:
    for size in (1, 13, 1 << 16):
        with pytest.raises(Problem, match=words) as raised:
            read(data, size, limit=5000)
        assert raised.value.status == status


@pytest.mark.parametrize(
    "content_type",
    ["", "application/json", "multipart/form-data", "multipart/form-data; boundary=", "multipart/mixed; boundary=x"],
)
def test_what_is_no_form_is_refused(content_type: str) -> None:
    with pytest.raises(Problem, match="multipart/form-data") as raised:
        UploadForm(content_type, 1)
    assert raised.value.status == 415


def test_a_boundary_beyond_all_bounds_is_refused() -> None:
    with pytest.raises(Problem, match="malformed"):
        UploadForm(f"multipart/form-data; boundary={'b' * 10_000}", 1)


@given(st.binary(max_size=400))
def test_bytes_at_random_are_refused_and_never_an_error(data: bytes) -> None:
    with pytest.raises(Problem):
        read(data)
