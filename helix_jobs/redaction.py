"""Removes passwords and secrets from text: from URLs, connection strings, and the messages of libraries."""

from __future__ import annotations

import re
from typing import Final

# "scheme://user:password@": the password runs to the last "@" before the path, as URL parsers read it.
_URL_PASSWORD: Final = re.compile(r"(?P<head>[A-Za-z][A-Za-z0-9+.-]*://[^\s:/@]*):(?P<password>[^\s/\"'<>]+)@")
# In the addresses of our own services, this also catches a password that should have been percent-encoded: there only
# the user's part contains an "@".
_SERVICE_PASSWORD: Final = re.compile(
    r"(?P<head>\b(?:redis|rediss|valkey|valkeys|redis\+socket|sentinel|postgres|postgresql)(?:\+\w+)?://[^\s:/@?#]*):\S*@",
    re.IGNORECASE,
)
# In a query (?password=), in libpq's "host=... password=..." and in a printed mapping ('password': '...').
_FIELD: Final = re.compile(
    r"(?P<head>\b\w*(?:password|passwd)(?:=|[\"']\s*:\s*))(?:\"[^\"]*\"|'[^']*'|[^\s&\"',;]+)", re.IGNORECASE
)
# The secret of a webhook; half of one is no secret, but nobody should have to judge.
_WEBHOOK_SECRET: Final = re.compile(r"\bwhsec_[A-Za-z0-9+/=_-]+")
HIDDEN: Final = "***"


def redact(text: str) -> str:
    """Replace passwords inside URLs and in ``password=`` fields by ``***``."""
    # Most lines have neither; substring searches are cheaper than regular expressions.
    if "://" in text and "@" in text:
        text = _URL_PASSWORD.sub(rf"\g<head>:{HIDDEN}@", _SERVICE_PASSWORD.sub(rf"\g<head>:{HIDDEN}@", text))
    if "passw" in text.lower():
        text = _FIELD.sub(rf"\g<head>{HIDDEN}", text)
    if "whsec_" in text:
        text = _WEBHOOK_SECRET.sub(HIDDEN, text)
    return text
