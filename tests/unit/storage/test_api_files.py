"""Uploaded files: stored part by part, there once they are whole, and removed in steps."""

from __future__ import annotations

import io
from datetime import timedelta

import pytest
from sqlalchemy import func, select, update

from helix_jobs.client.purge import measure, plan_purge, purge
from helix_jobs.errors import NotFoundError
from helix_jobs.storage import api_batches, api_files
from helix_jobs.storage.api_files import StoredFile
from helix_jobs.storage.api_records import ApiFile, NewApiBatch, Page
from helix_jobs.storage.check import check_rows
from helix_jobs.storage.readable import unreadable_page
from helix_jobs.storage.schema import api_file_parts
from helix_jobs.storage.schema import api_files as table
from tests.store_helpers import now

HOUR = timedelta(hours=1)
ALL = Page(limit=100)


def upload(
    database, *parts: bytes, owner: str = "me", file_id: str = "file-1", finish: bool = True, **changes
) -> ApiFile:
    values = {"filename": "a.jsonl", "purpose": "batch", "created_at": now(), **changes}
    file = ApiFile(id=file_id, owner=owner, bytes=sum(map(len, parts)), **values)
    with database.write() as c:
        api_files.begin_upload(c, file.id, owner, file.created_at)
    for number, part in enumerate(parts):
        with database.write() as c:
            api_files.add_part(c, file.id, number, part, now())
    if finish:
        with database.write() as c:
            api_files.finish_upload(c, file)
    return file


def found(database, owner: str = "me", page: Page = ALL, purpose: str | None = None) -> list[str]:
    with database.read() as c:
        return [file.id for file in api_files.list_files(c, owner, page, purpose, now())]


def count(database, counted=api_file_parts) -> int:
    with database.read() as c:
        return c.execute(select(func.count()).select_from(counted)).scalar_one()


def reading_batch(database, file_id: str = "file-1") -> None:
    with database.write() as c:
        new = NewApiBatch(
            id="batch_1",
            owner="me",
            input_file_id=file_id,
            endpoint="/v1/completions",
            completion_window="24h",
            metadata={},
            created_at=now(),
            expires_at=now() + HOUR,
        )
        api_batches.create_api_batch(c, new)


def test_a_file_is_there_once_it_is_whole(database):
    file = upload(database, b"abc", b"de", finish=False)
    assert found(database) == []
    with database.read() as c, pytest.raises(NotFoundError):
        api_files.get_file(c, "me", file.id, now())
    with database.write() as c:
        api_files.finish_upload(c, file)
    assert found(database) == [file.id]
    with database.read() as c:
        assert api_files.get_file(c, "me", file.id, now()) == file
    assert list(api_files.read_parts(database, file.id)) == [b"abc", b"de"]


def test_each_owner_has_its_own(database):
    upload(database, b"a")
    upload(database, b"b", owner="you", file_id="file-2")
    assert (found(database), found(database, "you")) == (["file-1"], ["file-2"])
    with database.read() as c:
        with pytest.raises(NotFoundError):
            api_files.get_file(c, "you", "file-1", now())
        with pytest.raises(NotFoundError, match="after"):
            api_files.list_files(c, "you", Page(limit=1, after="file-1"), None, now())


def test_pages_meet_without_gap_or_overlap(database):
    moment = now()
    for number in range(7):  # some of the same moment
        upload(database, b"x", file_id=f"file-{number}", created_at=moment - number // 3 * HOUR)
    for newest_first in (True, False):
        seen, after = [], None
        while True:
            page = found(database, page=Page(limit=2, after=after, newest_first=newest_first))
            seen += page[:2]
            if len(page) < 3:
                break
            after = page[1]
            if after == seen[1]:  # what comes meanwhile shifts no page
                upload(database, b"x", file_id=f"file-new-{newest_first}", created_at=moment + HOUR)
        old = [name for name in seen if "new" not in name]
        assert sorted(old) == [f"file-{number}" for number in range(7)]
        assert len(set(seen)) == len(seen)


def test_a_purpose_chooses(database):
    upload(database, b"x")
    assert found(database, purpose="batch") == ["file-1"]
    assert found(database, purpose="vision") == []


def test_a_stream_gives_lines_across_parts(database):
    file = upload(database, b"one\ntw", b"o\nthr", b"ee")
    parts = []
    stream = io.BufferedReader(StoredFile(database, file, lambda: parts.append(1)), 4)
    assert stream.name == "a.jsonl"
    assert [stream.readline(100), stream.readline(100), stream.readline(100), stream.readline(100)] == [
        b"one\n",
        b"two\n",
        b"three",
        b"",
    ]
    assert len(parts) >= 4


def test_a_file_removed_while_it_is_read_looks_no_shorter(database):
    upload(database, b"a", b"b", b"c")
    parts = api_files.read_parts(database, "file-1")
    assert next(parts) == b"a"
    api_files.remove_file(database, "file-1")
    with pytest.raises(NotFoundError, match="not all of it"):
        next(parts)


def test_a_removal_takes_every_part_in_steps(database, monkeypatch):
    monkeypatch.setattr(api_files, "_PARTS_A_STEP", 2)
    upload(database, *[b"x"] * 5)
    upload(database, b"stays", file_id="file-2")
    api_files.remove_file(database, "file-1")
    api_files.remove_file(database, "file-1")
    assert (found(database), count(database), count(database, table)) == (["file-2"], 1, 1)


def test_an_upload_that_was_given_up_takes_no_more_parts(database):
    file = upload(database, b"a", finish=False)
    with database.write() as c:
        api_files.hide_file(c, file.id)
    with database.write() as c, pytest.raises(NotFoundError, match="given up"):
        api_files.add_part(c, file.id, 1, b"b", now())
    with database.write() as c, pytest.raises(NotFoundError, match="given up"):
        api_files.finish_upload(c, file)


def test_a_sweep_finds_what_expired_and_what_broke_off(database):
    upload(database, b"x", file_id="file-kept", expires_at=now() + HOUR)
    upload(database, b"x", file_id="file-expired", expires_at=now() - HOUR)
    upload(database, b"x", file_id="file-hidden")
    upload(database, b"x", file_id="file-under-way", finish=False)
    upload(database, b"x", file_id="file-broken", finish=False)
    with database.write() as c:
        api_files.hide_file(c, "file-hidden")
        old = update(table).where(table.c.id == "file-broken").values(touched_at=now() - 2 * api_files.BROKEN_OFF)
        c.execute(old)
    assert found(database) == ["file-kept"], "an expired file is gone before it is removed"
    with database.read() as c:
        assert set(api_files.removable_files(c, now())) == {"file-expired", "file-hidden", "file-broken"}
        assert "file-kept" in api_files.removable_files(c, now(), now())


def test_a_file_that_a_batch_reads_stays(database):
    upload(database, b"x", expires_at=now() - HOUR)
    reading_batch(database)
    with database.read() as c:
        assert api_files.is_read(c, "file-1")
        assert api_files.removable_files(c, now(), now() + HOUR) == []
    with database.write() as c:
        api_batches.close_failed(c, "batch_1", [], now())
    with database.read() as c:
        assert not api_files.is_read(c, "file-1")
        assert api_files.removable_files(c, now()) == ["file-1"]


def test_a_purge_by_age_removes_old_uploads_and_batches_that_failed(database):
    upload(database, b"x", b"y", created_at=now() - 3 * HOUR)
    upload(database, b"x", file_id="file-2")
    reading_batch(database, "file-2")
    with database.write() as c:
        api_batches.close_failed(c, "batch_1", [], now() - 3 * HOUR)
    assert purge(database, plan_purge(database, batch_ids=[])).uploads == 0
    assert measure(database, plan_purge(database, batch_ids=[])).uploads == 0
    assert measure(database, plan_purge(database, older_than=2 * HOUR)).uploads == 1
    assert purge(database, plan_purge(database, older_than=2 * HOUR)).uploads == 1
    assert found(database) == ["file-2"]
    with database.read() as c, pytest.raises(NotFoundError):
        api_batches.get_api_batch(c, "me", "batch_1")


def test_a_check_of_all_rows_holds_few_parts_at_once(database):
    upload(database, *[b"x"] * 10)
    with database.read() as c:
        assert unreadable_page(c, api_file_parts, None) == ([], ("file-1", 7))
        assert unreadable_page(c, api_file_parts, ("file-1", 7)) == ([], None)
    assert check_rows(database, repair=False) == []
