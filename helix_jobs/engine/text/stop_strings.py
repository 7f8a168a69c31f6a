"""StopStringWatch: finds the stop strings of a request in its growing output."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from helix_jobs.engine.text.codec import Context, TextCodec


class StopStringWatch:
    """Finds stop strings in a growing output; a stop string may span several tokens.

    Each search decodes only a window of the last tokens, long enough for the longest stop string: a token adds at least
    one byte, and a character has at most four. The window grows where special tokens add nothing. A hit is then
    confirmed on the whole text.

    Args:
        codec: Decodes the output.
        stop: The stop strings.
        context: The end of the prompt before the output.
        is_chat: The output is a chat answer: a space that begins its text does not belong to it.
        min_tokens: A stop string counts only where a token behind the first ``min_tokens`` completes it.
        keeps_stop: The text found ends with the stop string instead of before it.
    """

    def __init__(
        self,
        codec: TextCodec,
        stop: Sequence[str],
        context: Context | None = None,
        *,
        is_chat: bool = False,
        min_tokens: int = 0,
        keeps_stop: bool = False,
    ) -> None:
        self._codec = codec
        self._stop = tuple(stop)
        self._min_tokens = min_tokens
        self._keeps_stop = keeps_stop
        self._context = context
        self._is_chat = is_chat
        self._longest = max(len(text) for text in self._stop)
        # At worst four tokens a character, and a cut character at each edge of the window.
        self._window = 4 * self._longest + 8

    def find(self, output_ids: Sequence[int], num_new: int, num_before: int = 0) -> tuple[int, str] | None:
        """Find the first stop string that the last ``num_new`` tokens complete.

        Args:
            output_ids: The output; of one that has thought, the answer behind the thinking.
            num_new: How many of its last tokens are new.
            num_before: Output tokens before ``output_ids``; they count for ``min_tokens``.

        Returns:
            The number of tokens up to and including the one that completes it, and the text before it, or with it; or
            None.
        """
        min_tokens = max(0, self._min_tokens - num_before)
        num_new = min(num_new, len(output_ids) - min_tokens)
        if num_new <= 0:
            return None
        window = self._window + num_new
        tail = self._tail(output_ids, window)
        while len(tail) < self._longest + num_new and window < len(output_ids):
            window *= 2
            tail = self._tail(output_ids, window)
        if not any(text in tail for text in self._stop):
            return None
        # The text in which a stop string does not count.
        passed = len(self._codec.decode(output_ids[:min_tokens], self._context)) if min_tokens else 0
        for count in range(len(output_ids) - num_new + 1, len(output_ids) + 1):
            text = self._codec.decode(output_ids[:count], self._context)
            places = [(place, place + len(stop)) for stop in self._stop if (place := _place(text, stop, passed)) >= 0]
            if places:
                begin, end = min(places)
                shown = text[: end if self._keeps_stop else begin]
                return count, self._shown(shown, text, output_ids[:count])
        return None

    def _tail(self, output_ids: Sequence[int], window: int) -> str:
        if window >= len(output_ids):
            return self._codec.decode(output_ids, self._context)
        return self._codec.decode(self._codec.window(output_ids, window))

    def _shown(self, part: str, text: str, output_ids: Sequence[int]) -> str:
        """A text's beginning as the answer shows it."""
        if not self._is_chat:
            return part
        alone = self._codec.decode(output_ids)
        return part[len(text) - len(alone) :] if text.endswith(alone) else part


def _place(text: str, stop: str, passed: int) -> int:
    """Where a stop string first stands that ends behind the first ``passed`` characters; -1 for nowhere."""
    return text.find(stop, max(0, passed - len(stop) + 1))
