"""Passwords are taken out of whatever holds them, and nothing else is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helix_jobs.redaction import redact


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0"),
        ("redis://:pw@host/0", "redis://:***@host/0"),
        ("rediss://user:p:w@host:1/0", "rediss://user:***@host:1/0"),
        ("redis://user:p@ss/w@host/0", "redis://user:***@host/0"),
        ("redis://user@host/0", "redis://user@host/0"),
        ("postgresql://host/db?user=u&password=pw&x=1", "postgresql://host/db?user=u&password=***&x=1"),
        ("redis+socket:///home/a@b/broker.sock", "redis+socket:///home/a@b/broker.sock"),
        ("postgresql://host/db?sslpassword=pw&sslmode=require", "postgresql://host/db?sslpassword=***&sslmode=require"),
        ("redis://:a%40b%2Fc@host/0", "redis://:***@host/0"),
        ("redis://host/0?PASSWORD=pw", "redis://host/0?PASSWORD=***"),
        ("postgresql+psycopg://u:a?b#c@host/db", "postgresql+psycopg://u:***@host/db"),
        ("cannot reach redis://u:pw@h/0 now", "cannot reach redis://u:***@h/0 now"),
    ],
)
def test_urls(url: str, shown: str) -> None:
    assert redact(url) == shown


@given(st.text(alphabet=st.characters(min_codepoint=33, max_codepoint=126), min_size=8))
def test_no_password_of_a_service_survives_encoded_or_not(password: str) -> None:
    secret = f"S3CRET{password}"
    assert "S3CRET" not in redact(f"redis://user:{secret}@host:6379/0")


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("to redis://:s3cret@host:6379/0 now", "to redis://:***@host:6379/0 now"),
        ("postgresql+psycopg://me:s3cret@db/x", "postgresql+psycopg://me:***@db/x"),
        ("rediss://user:p@ss:w0rd@h", "rediss://user:***@h"),
        ("host=h password=s3cret user=u", "host=h password=*** user=u"),
        ("redis://h/0?password=s3cret&db=1", "redis://h/0?password=***&db=1"),
        ("host=h password='two words' user=u", "host=h password=*** user=u"),
        ("{'host': 'h', 'password': 'pw', 'port': 1}", "{'host': 'h', 'password': ***, 'port': 1}"),
        ("http://host:8080/a@b and c@d", "http://host:8080/a@b and c@d"),
        ("nothing to hide", "nothing to hide"),
    ],
)
def test_text_around_it_stays(text: str, redacted: str) -> None:
    assert redact(text) == redacted


PASSWORDS = st.text(
    st.characters(min_codepoint=33, max_codepoint=0x2FF, exclude_characters="/\"'<>\x85\xa0"), min_size=5
)


@given(PASSWORDS)
def test_no_password_survives_in_a_url(password: str) -> None:
    assert password not in redact(f"cannot reach redis://user:{password}@10.0.0.1:6379/0").replace("***", "")
