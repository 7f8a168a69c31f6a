"""Event: a notice in OpenAI's form of a webhook event, and in words."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.plain_text import printable
from helix_jobs.storage import notices
from helix_jobs.wording import counted

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from helix_jobs.storage.notices import Notice

_TITLES: Final = {
    notices.COMPLETED: "has ended",
    notices.FAILED: "was not accepted",
    notices.EXPIRED: "has expired",
    notices.CANCELLED: "is cancelled",
    notices.PAUSED: "is paused",
    notices.FAILING: "is failing",
    notices.SLIPPING: "will miss its deadline",
}


@dataclass(frozen=True, slots=True)
class Event:
    """Something that a channel tells.

    Attributes:
        id: The same each time it is sent.
        kind: What has happened: one of OpenAI's names, or one of Helix's own with ``helix.`` before it.
        created_at: When it happened.
        data: What there is to say of it. ``id`` names the batch as its client knows it.
    """

    id: str
    kind: str
    created_at: datetime
    data: Mapping[str, Any]

    @classmethod
    def of(cls, notice: Notice) -> Event:
        """The event of a stored notice."""
        return cls(notice.id, notice.kind, notice.created_at, notice.data)

    def body(self) -> bytes:
        """The event as JSON: the body of a webhook, the input of a command."""
        value = {
            "id": self.id,
            "object": "event",
            "type": self.kind,
            "created_at": int(self.created_at.timestamp()),
            "data": dict(self.data),
        }
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()

    def title(self) -> str:
        """The event in one line."""
        named = self.data.get("name") or self.data.get("id")
        batch = f"Batch {printable(str(named))[:100]}" if named else "Helix"
        return f"{batch} {_TITLES.get(self.kind, f'says {self.kind}')}"

    def text(self) -> str:
        """The event in a few lines."""
        lines = []
        counts = self.data.get("request_counts")
        if isinstance(counts, dict):
            parts = [f"{number:,} {name}" for name, number in counts.items() if name != "total" and number]
            lines.append(f"{counted(counts.get('total', 0), 'job')}: {', '.join(parts) or 'none has ended'}")
        lines += [f"{number:,} {code}" for code, number in dict(self.data.get("errors") or {}).items()]
        lines += [printable(str(self.data[name])) for name in ("why", "message") if self.data.get(name)]
        lines.append(printable(f"{self.data.get('batch_id') or self.data.get('id') or ''} {self.kind}".strip()))
        return "\n".join(lines)
