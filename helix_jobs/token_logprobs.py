"""TokenLogprobs: log probabilities of a run of tokens, as they are stored, read back and exported.

It stands at the package's root because the engine makes it, the worker stores it and the exports read it.
"""

from __future__ import annotations

import math
import struct
import sys
import zlib
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# OpenAI's log probability of a token that is as good as impossible: JSON has no minus infinity.
IMPOSSIBLE: Final = -9999.0
# Stands for a token that is not there: a vocabulary with fewer tokens than the alternatives asked for.
NO_TOKEN: Final = -1
# The first byte of the stored form. A form that older versions cannot read gets the next number.
_VERSION: Final = 1
# Rows, alternatives a row, and token texts.
_HEADER: Final = struct.Struct("<III")
# Token id, whether it is special, and bytes of its text.
_TEXT: Final = struct.Struct("<iBI")


@dataclass(frozen=True, slots=True)
class TokenText:
    """What a token stands for.

    Attributes:
        data: Its bytes; a byte-level token may be a part of a character.
        is_special: It never shows in an answer's text, such as an end-of-turn token. ``data`` is then its name.
    """

    data: bytes
    is_special: bool = False

    @property
    def text(self) -> str:
        """The token as text, with replacement characters for parts of characters."""
        return self.data.decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token of the run.

    Attributes:
        token_id: The token.
        logprob: Natural logarithm of its probability at its position; None where nothing stands before it.
        alternatives: Token ids and log probabilities of the most likely tokens at that position, best first. The
            token itself is among them if it is likely enough.
    """

    token_id: int
    logprob: float | None
    alternatives: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log probabilities of a run of tokens, of the target's distribution before temperature and processors.

    The numbers lie in two flat arrays, because 100,000 tokens with 20 alternatives as objects would take half a GB.

    Attributes:
        num_alternatives: Alternatives of each token.
        token_ids: ``[num_tokens * (1 + num_alternatives)]`` int32: each token, then its alternatives, best first.
        logprobs: Their log probabilities, float32, NaN for none.
        texts: Token id -> its text, of every token above, so that a reader needs no tokenizer.
    """

    num_alternatives: int
    token_ids: array[int]
    logprobs: array[float]
    texts: Mapping[int, TokenText] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.token_ids) // (1 + self.num_alternatives)

    def __iter__(self) -> Iterator[TokenLogprob]:
        width = 1 + self.num_alternatives
        for start in range(0, len(self.token_ids), width):
            first, *others = zip(
                self.token_ids[start : start + width], self.logprobs[start : start + width], strict=True
            )
            yield TokenLogprob(
                token_id=first[0],
                logprob=None if math.isnan(first[1]) else first[1],
                alternatives=tuple(one for one in others if one[0] != NO_TOKEN),
            )

    def total(self, num_tokens: int | None = None) -> float:
        """The sum of the log probabilities of the first ``num_tokens`` tokens, or of all; those of None left out.

        No token counts less than ``IMPOSSIBLE``.
        """
        width = 1 + self.num_alternatives
        chosen = self.logprobs[::width][:num_tokens]
        return math.fsum(max(IMPOSSIBLE, value) for value in chosen if not math.isnan(value))

    def to_bytes(self) -> bytes:
        """The stored form: a version's byte, then compressed arrays and texts, little-endian.

        Trade-off: zlib takes most off the texts and next to nothing off the numbers, which are kept as they are; in
        return every Python reads it. Its fastest level takes half the time of the usual one, for a hundredth more.
        """
        texts = (
            _TEXT.pack(token_id, text.is_special, len(text.data)) + text.data for token_id, text in self.texts.items()
        )
        header = _HEADER.pack(len(self), self.num_alternatives, len(self.texts))
        body = b"".join((header, _little(self.token_ids), _little(self.logprobs), *texts))
        return bytes((_VERSION,)) + zlib.compress(body, level=1)

    @classmethod
    def from_bytes(cls, data: bytes) -> TokenLogprobs:
        """Read the stored form back.

        Raises:
            ValueError: The bytes are damaged, or a newer version wrote them.
        """
        if not data or data[0] != _VERSION:
            raise ValueError("these log probabilities are in a form that this version cannot read")
        try:
            body = zlib.decompress(data[1:])
            num_tokens, num_alternatives, num_texts = _HEADER.unpack_from(body)
            num_bytes = 4 * num_tokens * (1 + num_alternatives)
            ids_end, end = _HEADER.size + num_bytes, _HEADER.size + 2 * num_bytes
            if end > len(body):
                raise ValueError("log probabilities are cut off")
            token_ids, logprobs = array("i", body[_HEADER.size : ids_end]), array("f", body[ids_end:end])
            texts: dict[int, TokenText] = {}
            for _ in range(num_texts):
                token_id, is_special, length = _TEXT.unpack_from(body, end)
                start, end = end + _TEXT.size, end + _TEXT.size + length
                texts[token_id] = TokenText(body[start:end], bool(is_special))
        except (zlib.error, struct.error) as error:
            raise ValueError("log probabilities are damaged") from error
        if end != len(body):
            raise ValueError("log probabilities are damaged")
        if sys.byteorder == "big":
            token_ids.byteswap()
            logprobs.byteswap()
        return cls(num_alternatives, token_ids, logprobs, texts)


def _little(values: array[int] | array[float]) -> bytes:
    if sys.byteorder == "big":
        values = values[:]
        values.byteswap()
    return values.tobytes()
