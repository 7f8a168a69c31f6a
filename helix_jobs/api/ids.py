"""Ids of files and batches, as clients give them back."""

from __future__ import annotations

import re
from typing import Final

from helix_jobs.errors import NotFoundError

# The database is not asked for what cannot be an id: Postgres takes no text with NUL.
_FORM: Final = re.compile(r"[a-z]{1,8}[-_][a-z0-9-]{1,34}", re.ASCII)


def known_id(text: str) -> str:
    """The id, if it has an id's form.

    Raises:
        NotFoundError: Nothing can have such an id.
    """
    if _FORM.fullmatch(text) is None:
        raise NotFoundError("there is nothing with an id of this form; GET /v1/files and GET /v1/batches list ids")
    return text
