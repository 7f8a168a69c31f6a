"""Stored log probabilities in the forms of OpenAI's chat completions, of its completions, and of vLLM's prompts.

Sources: the type definitions of openai-python (``chat_completion_token_logprob``, ``completion_choice``), and vLLM's
``prompt_logprobs`` (a mapping from token id to ``logprob``, ``rank`` and ``decoded_token`` for each prompt token).
"""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING, Any

from helix_jobs.errors import UnreadableRowError
from helix_jobs.token_logprobs import IMPOSSIBLE, TokenLogprobs

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from helix_jobs.storage.records import JobResult
    from helix_jobs.token_logprobs import TokenLogprob, TokenText


def read_logprobs(result: JobResult, data: bytes | None) -> TokenLogprobs | None:
    """The log probabilities that a result's row holds.

    Raises:
        UnreadableRowError: The bytes are damaged.
    """
    if data is None:
        return None
    try:
        return TokenLogprobs.from_bytes(data)
    except ValueError as error:
        raise UnreadableRowError(
            f"job {result.job_id}: {error}; `retry` cannot restore them, submit it again"
        ) from None


def chat_content(found: TokenLogprobs) -> list[dict[str, Any]]:
    """OpenAI's ``logprobs.content``: for each token its text, bytes, log probability and alternatives."""
    return [
        {
            **_chat_token(found, one.token_id, one.logprob),
            "top_logprobs": [_chat_token(found, *other) for other in one.alternatives],
        }
        for one in found
    ]


def completion_logprobs(parts: Sequence[TokenLogprobs], text: str) -> dict[str, Any]:
    r"""OpenAI's ``logprobs`` of a completion, in columns.

    A part of a character is called ``bytes:\xe4``, as OpenAI calls it. ``top_logprobs`` always has the token itself,
    so that it may have one more entry than asked for. Of two tokens with the same text the likelier one stays.

    Args:
        parts: The prompt's log probabilities, if it is echoed, and the output's.
        text: The text of the choice. ``text_offset`` counts its characters.
    """
    entries = [(found, one) for found in parts for one in found]
    return {
        "tokens": [_name(found.texts[one.token_id]) for found, one in entries],
        "token_logprobs": [_number(one.logprob) for _, one in entries],
        "top_logprobs": [_best(found, one) for found, one in entries],
        "text_offset": _offsets([found.texts[one.token_id] for found, one in entries], text),
    }


def vllm_prompt_logprobs(found: TokenLogprobs) -> list[dict[str, Any] | None]:
    """The form of vLLM's ``prompt_logprobs``: null for the first token, then a mapping from token ids.

    ``rank`` is 1 for the most likely token, and null for a token beyond the alternatives.
    """
    return [None if one.logprob is None else _vllm_token(found, one) for one in found]


def shown_text(found: TokenLogprobs) -> str:
    """The text of the tokens, special ones left out."""
    data = b"".join(found.texts[one.token_id].data for one in found if not found.texts[one.token_id].is_special)
    return data.decode("utf-8", "replace")


def _chat_token(found: TokenLogprobs, token_id: int, logprob: float | None) -> dict[str, Any]:
    text = found.texts[token_id]
    return {"token": text.text, "logprob": _number(logprob), "bytes": list(text.data)}


def _vllm_token(found: TokenLogprobs, one: TokenLogprob) -> dict[str, Any]:
    ranks = {token_id: rank for rank, (token_id, _) in enumerate(one.alternatives, start=1)}
    logprobs = {one.token_id: one.logprob, **dict(one.alternatives)}
    return {
        str(token_id): {
            "logprob": _number(logprob),
            "rank": ranks.get(token_id),
            "decoded_token": found.texts[token_id].text,
        }
        for token_id, logprob in logprobs.items()
    }


def _best(found: TokenLogprobs, one: TokenLogprob) -> dict[str, float | None] | None:
    if one.logprob is None:
        return None
    best: dict[str, float | None] = {}
    for token_id, logprob in (*one.alternatives, (one.token_id, one.logprob)):
        best.setdefault(_name(found.texts[token_id]), _number(logprob))
    return best


def _name(text: TokenText) -> str:
    try:
        return text.data.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in text.data)


def _number(logprob: float | None) -> float | None:
    """A float32 as the shortest number that still is the same float32: JSON then has half the digits."""
    if logprob is None:
        return None
    return max(IMPOSSIBLE, float(f"{logprob:.9g}"))


def _offsets(texts: Iterable[TokenText], text: str) -> list[int]:
    """Where each token begins in the text, in characters; a part of a character begins where the character does."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    offsets: list[int] = []
    # SentencePiece begins a text with a space that the text does not have.
    place, surplus = 0, None
    for one in texts:
        offsets.append(place)
        if one.is_special:
            continue
        shown = decoder.decode(one.data)
        if surplus is None and shown:
            surplus = shown.startswith(" ") and not text.startswith(" ")
            shown = shown[surplus:]
        place = min(len(text), place + len(shown))
    return offsets
