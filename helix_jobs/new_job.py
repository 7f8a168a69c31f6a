"""NewJob: one accepted line of an input, as ``intake`` reads it and as ``storage`` writes it.

It stands at the package's root because neither of these two packages may import the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """One accepted line.

    Attributes:
        line: Line number, from 1.
        custom_id: The user's own name for the job, unique in the batch.
        request: The content of ``jobs.request``: ``prompt`` or ``messages`` (and ``chat_template_kwargs`` and
            ``truncate_prompt`` if given), ``sampling``, ``metadata``, ``seed``, and for OpenAI lines ``endpoint`` and
            ``model``. A line that names no seed gets one from ``seed_from``.
        priority: 0 to 9, higher runs first.
        size: Bytes of the line.
        max_attempts: Claims after which a job is given up if its worker dies.
        answer_key: What its answer depends on (``answer_key.py``); None if no stored answer is to be taken for it.
    """

    line: int
    custom_id: str | None
    request: dict[str, Any]
    priority: int = 0
    size: int = 0
    max_attempts: int = 3
    answer_key: str | None = None

    @property
    def num_choices(self) -> int:
        """How many answers it asks for."""
        return int(self.request.get("sampling", {}).get("n", 1))

    def seed_from(self, batch_id: str) -> None:
        """Derive the seed from the batch and the line, if the line names none."""
        if "seed" not in self.request:
            self.request["seed"] = derive_seed(batch_id, self.line)


def derive_seed(batch_id: str, line: int) -> int:
    """Return the 64-bit seed of a job whose line names none."""
    return int.from_bytes(blake2b(f"{batch_id}:{line}".encode(), digest_size=8).digest(), "big")
