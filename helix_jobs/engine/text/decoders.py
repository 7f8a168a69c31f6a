"""Which decoders of a tokenizer are served: those whose time and memory grow no faster than the text.

The engine thread decodes token by token, and a tokenizer.json is untrusted. A regular expression may run for ever or
make the library panic; cutting characters off the end of a token that lacks them may do the same. A replacement longer
than the text it replaces multiplies the text at each step, as does replacing the empty text, which matches between any
two characters. No model in use needs any of these.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedTokenizerBase

_KNOWN: Final = frozenset({"ByteLevel", "ByteFallback", "Fuse", "Strip", "Metaspace", "WordPiece", "BPEDecoder", "CTC"})
# Llama's decoder has four steps.
_MOST_STEPS: Final = 16
# The longest tokens in vocabularies in use are runs of some hundred equal characters.
_LONGEST_TOKEN: Final = 10_000


def check_decoder(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer whose decoding cost is not bounded by the length of the text.

    Args:
        name: The model's name, as the user gave it.
        tokenizer: Any tokenizer; a slow one passes, as it is refused elsewhere.

    Raises:
        ModelError: The decoder is not served; the message says why.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return
    longest = max(map(len, backend.get_vocab(with_added_tokens=True)), default=0)
    fault = f"has a token of {longest:,} characters" if longest > _LONGEST_TOKEN else None
    if fault is None and backend.decoder is not None:
        fault = decoder_fault(json.loads(backend.decoder.__getstate__()))
    if fault is not None:
        raise ModelError(
            f"model {name}: its tokenizer {fault}, which is not served; use the model's own tokenizer.json"
        )


def decoder_fault(description: dict[str, Any]) -> str | None:
    """Why a decoder is not served, in words that follow "its tokenizer"; None if it is served.

    Args:
        description: The entry ``decoder`` of ``tokenizer.json``.
    """
    for count, step in enumerate(_steps(description), 1):
        if count > _MOST_STEPS:
            return f"decodes in more than {_MOST_STEPS} steps"
        if (fault := _step_fault(step)) is not None:
            return fault
    return None


def _step_fault(step: dict[str, Any]) -> str | None:
    match step:
        case {"type": "Replace", "pattern": {"String": pattern}, "content": content}:
            return "decodes by replacing a text with a longer one" if len(content) > len(pattern) else None
        case {"type": "Replace"}:
            return "decodes by a regular expression"
        case {"type": "Strip", "stop": stop} if stop:
            return "decodes by cutting off the end of each token"
        case {"type": "BPEDecoder", "suffix": ""} | {"type": "CTC", "word_delimiter_token": ""}:
            return "decodes by replacing an empty text"
        case {"type": kind} if kind in _KNOWN:
            return None
    return f"decodes by {step.get('type')!r:.40}"


def _steps(description: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The steps of nested sequences, one after the other."""
    stack = [description]
    while stack:
        step = stack.pop()
        if step.get("type") == "Sequence":
            stack.extend(reversed(step["decoders"]))
        else:
            yield step
