"""Access: who may ask, by API keys. Only digests of keys are kept, and they are compared in constant time."""

from __future__ import annotations

import hmac
import ipaddress
import re
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from helix_jobs.errors import ConfigurationError

# The owner of everything where no keys are set.
EVERYBODY: Final = "local"
_DIGEST: Final = re.compile(r"sha256:([0-9a-fA-F]{64})")
_LEAST_CHARS: Final = 16
_OWNER_CHARS: Final = 16
_BEARER: Final = "bearer "


@dataclass(frozen=True, slots=True)
class Access:
    """The digests of the keys that may ask; none where everybody may.

    Attributes:
        digests: SHA-256 of each key.
    """

    digests: tuple[bytes, ...] = ()

    @classmethod
    def of(cls, keys: str | None, host: str) -> Access:
        """Read ``HELIX_API_KEYS``: keys with commas between them, or ``sha256:`` and a key's digest in hex.

        Args:
            keys: The setting's text.
            host: The address to serve on.

        Raises:
            ConfigurationError: A key is short or malformed, or there is none although others than this machine may ask.
        """
        digests = tuple(
            _digest(place, key.strip()) for place, key in enumerate((keys or "").split(","), 1) if key.strip()
        )
        if not digests and not is_loopback(host):
            raise ConfigurationError(
                f"the server would answer everybody who reaches {host}; set HELIX_API_KEYS, or serve on 127.0.0.1"
            )
        return cls(digests)

    @property
    def is_open(self) -> bool:
        """Whether no key is asked for."""
        return not self.digests

    def owner(self, authorization: str | None) -> str | None:
        """The name of the key's files and batches, which does not tell the key; None if the key may not ask.

        Args:
            authorization: The header ``Authorization: Bearer KEY``, a character for each of its bytes (Latin-1).
        """
        if self.is_open:
            return EVERYBODY
        text = authorization or ""
        # The header's bytes as they came: a key that is not ASCII comes as UTF-8, like the setting.
        key = text[len(_BEARER) :].strip().encode("latin-1", "replace")
        return self.owner_of_key(key) if text.lower().startswith(_BEARER) else None

    def owner_of_key(self, key: bytes) -> str | None:
        """The owner's name of a key; None if it may not ask."""
        given = sha256(key).digest()
        # Each digest is compared, so that the time does not tell which one matched.
        found = [digest for digest in self.digests if hmac.compare_digest(digest, given)]
        return found[0].hex()[:_OWNER_CHARS] if found else None


def is_loopback(host: str) -> bool:
    """Whether only programs of this machine reach the address."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _digest(place: int, key: str) -> bytes:
    if key.lower().startswith("sha256:"):
        if (found := _DIGEST.fullmatch(key)) is None:
            raise ConfigurationError(f"key {place} of HELIX_API_KEYS is no digest; give sha256: and 64 hex digits")
        return bytes.fromhex(found[1])
    if len(key) < _LEAST_CHARS:
        raise ConfigurationError(
            f"key {place} of HELIX_API_KEYS has {len(key)} characters; give at least {_LEAST_CHARS}, "
            "such as: python -c 'import secrets; print(secrets.token_urlsafe())'"
        )
    return sha256(key.encode()).digest()
