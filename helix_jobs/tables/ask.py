"""TableAsk: which rows of a table become lines, and what is asked about each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from helix_jobs.errors import ConfigurationError
from helix_jobs.tables.read_options import ReadOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from helix_jobs.tables.columns import Selection


@dataclass(frozen=True, slots=True, kw_only=True)
class TableAsk:
    """What is asked of a table.

    Attributes:
        prompt: The template of the prompt.
        chat: The prompt is the user's message of a chat, not a text to continue.
        system: The template of a system message before it; implies ``chat``.
        messages: Messages whose texts are templates, in place of a prompt. Without either, the rows are the lines, and
            their columns the fields.
        select: The columns that rows keep; None for all.
        where: An expression over a row's columns; only rows for which it is true count.
        limit: Most rows that become lines.
        shuffle: The seed of the order in which rows come; None for the table's own order.
        id: The column with each job's ``custom_id``.
        reading: What is known of the table's form.

    Raises:
        ConfigurationError: Two of them contradict each other, or one is out of range.
    """

    prompt: str | None = None
    chat: bool = False
    system: str | None = None
    messages: Sequence[Any] | None = None
    select: Selection | None = None
    where: str | None = None
    limit: int | None = None
    shuffle: int | None = None
    id: str | None = None
    reading: ReadOptions = field(default_factory=ReadOptions)

    def __post_init__(self) -> None:
        if self.prompt is not None and self.messages is not None:
            raise ConfigurationError("a prompt and messages exclude each other; give one of them")
        if self.prompt is None and (self.chat or self.system is not None):
            raise ConfigurationError("a system message and chat belong to a prompt; give --prompt or --template")
        if self.messages is not None and (not isinstance(self.messages, list) or not self.messages):
            raise ConfigurationError('the messages are no list; give one such as [{"role": "user", "content": "..."}]')
        if self.limit is not None and self.limit < 1:
            raise ConfigurationError(f"the limit of rows is {self.limit}; give 1 or more")
        if self.id is not None and not self.has_template:
            raise ConfigurationError("an id column belongs to a prompt; without one, select custom_id=COLUMN")

    @property
    def has_template(self) -> bool:
        """Whether lines are made from templates; otherwise the rows are the lines."""
        return self.prompt is not None or self.messages is not None

    def line(self) -> dict[str, Any] | None:
        """The line whose texts are templates; None where the rows are the lines."""
        if self.messages is not None:
            return {"messages": self.messages}
        if self.prompt is None:
            return None
        if not self.chat and self.system is None:
            return {"prompt": self.prompt}
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return {"messages": [*system, {"role": "user", "content": self.prompt}]}
