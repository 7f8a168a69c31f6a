"""Which decoders of a tokenizer are served: those whose time and memory grow with the text and no faster.

The engine thread decodes, token by token, and a tokenizer.json is a stranger's work. A pattern may take for ever, or
end in a panic of the library, and so may cutting signs off the end of a token that has none. A replacement longer than
what it replaces multiplies the text at each step, and so does one of nothing at all, which stands between any two
characters. No model in use needs any of them.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedTokenizerBase

_KNOWN: Final = frozenset({"ByteLevel", "ByteFallback", "Fuse", "Strip", "Metaspace", "WordPiece", "BPEDecoder", "CTC"})
# Llama's has four steps.
_MOST_STEPS: Final = 16
# Runs of one sign are the longest that vocabularies in use have, some hundred of them.
_LONGEST_TOKEN: Final = 10_000


def check_decoder(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer whose decoding is not bounded by the text it makes.

    Args:
        name: What the person called the model.
        tokenizer: Any; a slow one, which is refused elsewhere, passes.

    Raises:
        ModelError: The message says what its decoder does.
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
    """What a decoder does that is not bounded, as in "its tokenizer ..."; None for nothing.

    Args:
        description: As ``tokenizer.json`` has it under ``decoder``.
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
