"""The signature of a webhook, as Standard Webhooks has it (https://www.standardwebhooks.com)."""

from __future__ import annotations

import base64
import hashlib
import hmac
from secrets import token_bytes
from typing import Final

from helix_jobs.notify_settings import SECRET_PREFIX

_SECRET_BYTES: Final = 32


def signed_headers(secret: str, message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The three headers by which a receiver knows who sent the body, and when.

    Args:
        secret: ``whsec_`` and the key in base64.
        message_id: The same each time the message is sent.
        timestamp: Seconds since 1970 of this sending: a receiver refuses an old one.
        body: The bytes as they are sent.
    """
    key = base64.b64decode(secret.removeprefix(SECRET_PREFIX))
    digest = hmac.digest(key, f"{message_id}.{timestamp}.".encode() + body, hashlib.sha256)
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
    }


def new_secret() -> str:
    """A fresh secret."""
    return SECRET_PREFIX + base64.b64encode(token_bytes(_SECRET_BYTES)).decode()
