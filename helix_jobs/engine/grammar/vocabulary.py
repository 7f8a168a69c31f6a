"""TokenTable: the bytes of each token of a vocabulary, as the grammar library needs them. No torch."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from llguidance import LLTokenizer

from helix_jobs.engine.text.byte_tokens import decoder_parts

if TYPE_CHECKING:
    from collections.abc import Collection

    from transformers import PreTrainedTokenizerBase

# Decoders whose tokens the library can read by itself. It tokenises with them as the model's tokenizer does, so that
# what it forces is what the model would write.
_KNOWN: Final = frozenset({"ByteLevel", "ByteFallback"})


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenTable:
    """A vocabulary in a form that can be sent to another process.

    Attributes:
        backend: The fast tokenizer's own JSON.
        vocab_size: Token ids that the model may emit; further ones are never allowed.
        end_token_ids: Tokens that end an output, at least one, in order.
        special_token_ids: Tokens that are never text.
        texts: The text of each token, where the library cannot read the tokenizer's JSON; else empty.
    """

    backend: str
    vocab_size: int
    end_token_ids: tuple[int, ...]
    special_token_ids: tuple[int, ...] = ()
    texts: tuple[str, ...] = ()

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, vocab_size: int, end_token_ids: Collection[int]) -> TokenTable:
        """Describe a fast tokenizer.

        Args:
            tokenizer: The model's.
            vocab_size: Token ids that the model may emit.
            end_token_ids: Tokens that end an output.
        """
        backend = tokenizer.backend_tokenizer
        special = tuple(sorted(int(i) for i, token in tokenizer.added_tokens_decoder.items() if token.special))
        size = max(vocab_size, len(tokenizer))
        ends = tuple(sorted(end_token_ids)) or special[:1] or (size - 1,)
        texts: tuple[str, ...] = ()
        if _KNOWN.isdisjoint(part["type"] for part in decoder_parts(backend)):
            hidden = {*special, *ends}
            known = range(len(tokenizer))
            texts = tuple(
                backend.decode([i], skip_special_tokens=False) if i in known and i not in hidden else ""
                for i in range(size)
            )
        return cls(
            backend=_bare(backend.to_str()), vocab_size=size, end_token_ids=ends, special_token_ids=special, texts=texts
        )

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> TokenTable:
        """Read what ``to_json`` wrote."""
        given: dict[str, Any] = {name: tuple(x) if isinstance(x, list) else x for name, x in values.items()}
        return cls(**given)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready mapping."""
        return asdict(self)

    def build(self) -> LLTokenizer:
        """The library's tokenizer. Takes about a second for 150,000 tokens.

        Raises:
            ValueError: The library cannot read the tokenizer.
        """
        ends = list(self.end_token_ids)
        if not self.texts:
            return LLTokenizer(self.backend, n_vocab=self.vocab_size, eos_token=ends)
        # The library takes any object with these attributes.
        return LLTokenizer(_Texts(self), n_vocab=self.vocab_size, eos_token=ends)  # type: ignore[arg-type]


class _Texts:
    """A tokenizer of another kind, as the library reads it."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, table: TokenTable) -> None:
        self.eos_token_id = table.end_token_ids[0]
        self.special_token_ids = sorted({*table.special_token_ids, *table.end_token_ids})
        self.tokens = [text.encode() for text in table.texts]
        self._ids = {text: token_id for token_id, text in reversed(list(enumerate(table.texts))) if text}
        self._longest = max(map(len, self._ids), default=1)

    def __call__(self, text: str) -> list[int]:
        """The longest token that fits, one after the other; characters without a token are left out."""
        ids: list[int] = []
        start = 0
        while start < len(text):
            for length in range(min(self._longest, len(text) - start), 0, -1):
                found = self._ids.get(text[start : start + length])
                if found is not None:
                    ids.append(found)
                    start += length
                    break
            else:
                start += 1
        return ids


def _bare(backend: str) -> str:
    """The tokenizer without truncation and padding, which would change what it makes of a text."""
    return json.dumps({**json.loads(backend), "truncation": None, "padding": None}, ensure_ascii=False)
