"""ByteTokens: which tokens hold only a part of a character, in tokenizers that split characters into bytes."""

from __future__ import annotations

import codecs
import json
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.token_logprobs import TokenText

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenizers import Tokenizer

_MAX_CHARACTER_BYTES: Final = 4
_FALLBACK: Final = re.compile(r"<0x([0-9A-F]{2})>")


class ByteTokens:
    """The bytes of one tokenizer's tokens.

    Two kinds of tokenizers split characters. Byte-level tokenizers (GPT-2, Qwen, Llama 3) write each byte as a letter
    of their own alphabet. Others (SentencePiece) have a token such as ``<0xE4>`` for each byte, used for characters
    they lack. In all other tokenizers a token is whole characters.

    Args:
        backend: The fast tokenizer.
        special_ids: Tokens that decoding leaves out.
    """

    def __init__(self, backend: Tokenizer, special_ids: frozenset[int]) -> None:
        self._backend = backend
        self._special_ids = special_ids
        parts = decoder_parts(backend)
        kinds = {part["type"] for part in parts}
        self._is_byte_level = "ByteLevel" in kinds
        self._has_fallback = "ByteFallback" in kinds
        self._spaces = _letters_of_spaces(parts)
        self._texts: dict[int, TokenText] = {}

    def num_open(self, token_ids: Sequence[int]) -> int:
        """Number of bytes of an incomplete character at the end of the tokens' text, 0 to 3."""
        if not (self._is_byte_level or self._has_fallback):
            return 0
        tail = b""
        for token_id in reversed(token_ids):
            if token_id in self._special_ids:
                continue
            tail = self._bytes(token_id) + tail
            if len(tail) >= _MAX_CHARACTER_BYTES or (self._has_fallback and not self._is_byte(token_id)):
                break
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        decoder.decode(tail)
        return len(decoder.getstate()[0])

    def without_open(self, token_ids: Sequence[int]) -> list[int]:
        """The tokens without the bytes of an incomplete character at the end, where a byte is a token.

        Such a decoder writes a replacement character for each byte of an incomplete run of bytes.
        """
        kept = list(token_ids)
        num_open = self.num_open(token_ids) if self._has_fallback else 0
        while num_open:
            num_open -= kept.pop() not in self._special_ids
        return kept

    def continues(self, token_id: int) -> bool:
        """Whether the token begins inside a character."""
        if not (self._is_byte_level or self._has_fallback):
            return False
        data = self._bytes(token_id)
        return bool(data) and data[0] & 0xC0 == 0x80  # noqa: PLR2004  (UTF-8's mark of a continuation byte)

    @property
    def writes_open(self) -> bool:
        """Whether decoding writes one replacement character for an incomplete character at the end."""
        return self._is_byte_level

    def text(self, token_id: int) -> TokenText:
        """A token's own bytes; a special token's name."""
        found = self._texts.get(token_id)
        if found is None:
            is_special = token_id in self._special_ids
            name = self._backend.id_to_token(token_id) or ""
            data = name.encode() if is_special else self._bytes(token_id)
            if not (is_special or self._is_byte_level or self._is_byte(token_id)):
                for letter in self._spaces:
                    data = data.replace(letter.encode(), b" ")
            found = self._texts[token_id] = TokenText(data, is_special)
        return found

    def _is_byte(self, token_id: int) -> bool:
        return _FALLBACK.fullmatch(self._backend.id_to_token(token_id) or "") is not None

    def _bytes(self, token_id: int) -> bytes:
        token = self._backend.id_to_token(token_id) or ""
        if self._has_fallback:
            found = _FALLBACK.fullmatch(token)
            return bytes([int(found[1], 16)]) if found else token.encode()
        alphabet = _byte_alphabet()
        # A token with letters outside the alphabet was added as text.
        return bytes(alphabet[c] for c in token) if all(c in alphabet for c in token) else token.encode()


def decoder_parts(backend: Tokenizer) -> list[dict[str, Any]]:
    """The descriptions of the steps that make text of tokens; none without a decoder."""
    if backend.decoder is None:
        return []
    description: dict[str, Any] = json.loads(backend.decoder.__getstate__())
    return [description, *description.get("decoders", ())]


def _letters_of_spaces(parts: list[dict[str, Any]]) -> list[str]:
    """Letters that stand for a space in the names of tokens (SentencePiece's is U+2581)."""
    letters = []
    for part in parts:
        if part["type"] == "Metaspace":
            letters.append(part["replacement"])
        elif part["type"] == "Replace" and part["content"] == " " and "String" in part["pattern"]:
            letters.append(part["pattern"]["String"])
    return letters


@lru_cache
def _byte_alphabet() -> dict[str, int]:
    """GPT-2's letters for bytes: printable bytes are their own letters, the others get the letters from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {
        **{chr(byte): byte for byte in printable},
        **{chr(0x100 + place): byte for place, byte in enumerate(others)},
    }
