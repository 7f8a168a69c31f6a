"""TranslatedMessages: another provider's messages in our form, and where each of their parts stands in the line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from helix_jobs.intake.line_faults import Faults


class TranslatedMessages:
    """Our messages, and where each part of them stands in the line.

    One message there may be several here: each result of a tool is a message of its own.

    Args:
        first: The index of the first message here.
        faults: Receives what has no meaning here.
        prefix: Stands before our path of the messages.

    Attributes:
        messages: The messages in our form.
        names: Our path -> the path in the line.
    """

    def __init__(self, first: int, faults: Faults, prefix: str = "") -> None:
        self.messages: list[Any] = []
        self.names: dict[str, str] = {}
        self._first = first
        self._faults = faults
        self._prefix = prefix

    @property
    def _last(self) -> str:
        """Our path of the last message."""
        return f"{self._prefix}messages[{self._first + len(self.messages) - 1}]"

    def _append(self, message: object, place: str) -> None:
        self.messages.append(message)
        self.names[self._last] = place

    def _append_call(self, identifier: object, function: Mapping[str, Any], place: str, arguments: str) -> str:
        """Add a call to the last message, and return our path of it.

        Args:
            identifier: The call's id as the line gives it.
            function: Its name and arguments.
            place: The call's path in the line.
            arguments: The path of its arguments there.
        """
        calls = self.messages[-1].setdefault("tool_calls", [])
        path = f"{self._last}.tool_calls[{len(calls)}]"
        # What is wrong with all calls of a message is told of the first one.
        self.names.setdefault(f"{self._last}.tool_calls", place)
        self.names |= {path: place, f"{path}.function": place, f"{path}.function.arguments": arguments}
        calls.append({"id": identifier, "type": "function", "function": function})
        return path
