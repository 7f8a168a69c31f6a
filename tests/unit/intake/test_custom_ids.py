"""The custom_ids of an input that no temporary file has room for."""

from __future__ import annotations

import io
import json
import sqlite3

import pytest

from helix_jobs.errors import ConfigurationError
from helix_jobs.intake.lines import LineReader
from helix_jobs.new_job import NewJob
from tests.unit.intake.request_lines import GREEDY


class Full(sqlite3.Connection):
    """A connection whose database is full after some pages."""

    def execute(self, sql, *parameters):
        if sql == "BEGIN":
            super().execute("PRAGMA max_page_count = 4")
        return super().execute(sql, *parameters)


def test_ids_that_find_no_room_are_told_with_the_remedy(monkeypatch):
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **options: connect(*args, **options, factory=Full))
    lines = [json.dumps({"prompt": "a", "custom_id": f"{number:0500}"}) for number in range(100)]
    items = LineReader(GREEDY).read(io.BytesIO("\n".join(lines).encode()))
    assert isinstance(next(items), NewJob)
    with pytest.raises(ConfigurationError, match=r"^line \d+: custom_id: the ids so far cannot be kept") as caught:
        list(items)
    assert "(database or disk is full); free some space where temporary files are, or name a" in str(caught.value)
