"""Lists with cursors, in OpenAI's form."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

Order = Literal["asc", "desc"]
MAX_BATCHES: Final = 100
MAX_FILES: Final = 10_000


def list_object(found: Sequence[dict[str, Any]], limit: int) -> dict[str, Any]:
    """The list object of a page.

    Args:
        found: The page's entries, and one more if there are more.
        limit: Entries of the page.
    """
    data = list(found[:limit])
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": len(found) > limit,
    }
