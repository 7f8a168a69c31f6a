"""Keys: who may ask."""

from __future__ import annotations

from hashlib import sha256

import pytest

from helix_jobs.api.access import EVERYBODY, Access, is_loopback
from helix_jobs.errors import ConfigurationError

KEY, OTHER = "a-key-of-some-length", "another-key-of-a-length"


def test_without_keys_everybody_of_this_machine_may_ask() -> None:
    access = Access.of(None, "127.0.0.1")
    assert access.is_open
    assert access.owner(None) == EVERYBODY
    assert access.owner("Bearer whatever") == EVERYBODY


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "box.example"])  # noqa: S104  (refused)
def test_without_keys_nobody_else_is_served(host: str) -> None:
    with pytest.raises(ConfigurationError, match="HELIX_API_KEYS"):
        Access.of(" , ", host)


def test_each_key_has_an_owner_of_its_own_which_does_not_tell_it() -> None:
    access = Access.of(f"{KEY}, {OTHER}", "0.0.0.0")  # noqa: S104  (keys are set)
    owners = {access.owner(f"Bearer {KEY}"), access.owner(f"bearer  {OTHER}")}
    assert len(owners) == 2
    assert not any(KEY in str(owner) or OTHER in str(owner) for owner in owners)
    assert not any(key.encode() in digest for key in (KEY, OTHER) for digest in access.digests)


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", f"Basic {KEY}", KEY, f"Bearer {KEY}x", f"Bearer {KEY[:-1]}"]
)
def test_a_wrong_key_may_not_ask(header: str | None) -> None:
    assert Access.of(KEY, "127.0.0.1").owner(header) is None


def test_a_key_may_be_given_as_its_digest() -> None:
    digest = sha256(KEY.encode()).hexdigest()
    assert Access.of(f"sha256:{digest.upper()}", "::1").owner(f"Bearer {KEY}") == Access.of(KEY, "::1").owner(
        f"Bearer {KEY}"
    )


@pytest.mark.parametrize(
    ("keys", "words"), [("short", "key 1.*5 characters"), (f"{KEY},sha256:12", "key 2.*no digest")]
)
def test_a_malformed_key_is_refused_without_being_shown(keys: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as raised:
        Access.of(keys, "127.0.0.1")
    assert "short" not in str(raised.value)


@pytest.mark.parametrize(
    ("host", "expected"),
    [("localhost", True), ("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("[::1]", True), ("10.0.0.1", False),
     ("localhost.evil.example", False), ("", False)],
)  # fmt: skip
def test_which_addresses_are_of_this_machine(host: str, *, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_a_key_may_have_letters_of_any_language() -> None:
    key = "ein-längerer-schlüssel"
    access = Access.of(key, "127.0.0.1")
    # Headers are bytes, and the server reads each as a character.
    assert access.owner(f"Bearer {key}".encode().decode("latin-1")) is not None
    assert access.owner(f"Bearer {key}") is None
