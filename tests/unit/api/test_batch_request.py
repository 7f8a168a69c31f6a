"""The body that asks for a batch: what is taken, and what is refused with the field's name."""

from __future__ import annotations

from datetime import timedelta

import pytest

from helix_jobs.api.batch_request import read_batch_request
from helix_jobs.api.expiry import form_expiry_seconds
from helix_jobs.api.problems import Problem
from helix_jobs.errors import InvalidFieldError
from tests.unit.api.api_values import NOW

BODY = {"input_file_id": "file-1", "endpoint": "/v1/chat/completions", "completion_window": "24h"}
HOUR_LATER = {"anchor": "created_at", "seconds": 3600}


def read(key: str | None = None, **changes: object):
    return read_batch_request({**BODY, **changes}, "me", key, NOW)


def test_a_whole_body():
    new = read("k", metadata={"a": "b"}, output_expires_after=HOUR_LATER, completion_window="7d")
    assert (new.input_file_id, new.endpoint, new.metadata) == ("file-1", "/v1/chat/completions", {"a": "b"})
    assert new.expires_at == NOW + timedelta(days=7)
    assert (new.output_expires_after, new.idempotency_key) == (3600, "batch:me:k")
    assert read().idempotency_key is None
    assert read(metadata=None, output_expires_after=None, anything=None).output_expires_after is None


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"input_file_id": None}, "input_file_id"),
        ({"input_file_id": 7}, "input_file_id"),
        ({"endpoint": None}, "endpoint"),
        ({"endpoint": "/v1/embeddings"}, "endpoint"),
        ({"completion_window": None}, "completion_window"),
        ({"completion_window": "0h"}, "completion_window"),
        ({"completion_window": "24"}, "completion_window"),
        ({"completion_window": "99999d"}, "completion_window"),
        ({"completion_window": "24h\n"}, "completion_window"),
        ({"metadata": []}, "metadata"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"metadata": {"a" * 65: "b"}}, "metadata"),
        ({"metadata": {"a": "b" * 513}}, "metadata"),
        ({"metadata": {str(i): "b" for i in range(17)}}, "metadata"),
        ({"output_expires_after": 3600}, "output_expires_after"),
        ({"output_expires_after": {"anchor": "created_at"}}, "output_expires_after"),
        ({"output_expires_after": {**HOUR_LATER, "anchor": "now"}}, "output_expires_after.anchor"),
        ({"output_expires_after": {**HOUR_LATER, "seconds": 3599}}, "output_expires_after.seconds"),
        ({"output_expires_after": {**HOUR_LATER, "seconds": True}}, "output_expires_after.seconds"),
    ],
)
def test_a_wrong_field_is_named(changes, field):
    with pytest.raises(Problem, match=r"; give") as raised:
        read(**changes)
    assert (raised.value.status, raised.value.param) == (400, field)


@pytest.mark.parametrize("changes", [{"model": "m"}, {"metadata": {"a": "\0"}}, {"input_file_id": "\ud800"}])
def test_what_is_unknown_or_cannot_be_stored_is_refused(changes):
    with pytest.raises(InvalidFieldError):
        read(**changes)


@pytest.mark.parametrize("key", ["", "x" * 201, "ü", "a\tb"])
def test_a_key_that_cannot_be_stored_is_refused(key):
    with pytest.raises(Problem, match="Idempotency-Key"):
        read(key)


def test_expiry_in_a_form():
    def fields(anchor: str, seconds: str) -> dict[str, str]:
        return {"expires_after[anchor]": anchor, "expires_after[seconds]": seconds}

    assert form_expiry_seconds({}, "expires_after") is None
    assert form_expiry_seconds(fields("created_at", "7200"), "expires_after") == 7200
    wrong = (
        fields("now", "7200"),
        *(fields("created_at", text) for text in ("7", "-7200", "7200.0", "", "9" * 5000, "²")),
    )
    for given in (*wrong, {"expires_after[seconds]": "7200"}, {"expires_after[anchor]": "created_at"}):
        with pytest.raises(Problem, match="expires_after"):
            form_expiry_seconds(given, "expires_after")
