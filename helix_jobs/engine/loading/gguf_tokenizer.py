"""The tokenizer built from a GGUF file's vocabulary, the same under every release of transformers.

The readers of transformers 4 and 5 disagree: 4 makes a Llama tokenizer of every ``llama`` file, 5 falls back to GPT-2's
words if it does not know the name of a split, and both overlook ``add_space_prefix``. Such errors are silent: the model
answers a prompt that was cut into other tokens than in its training.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from helix_jobs.engine.loading.gguf_splits import WORD_SPLITS
from helix_jobs.errors import ModelError, UnsupportedArchitectureError

if TYPE_CHECKING:
    from collections.abc import Mapping

_SPACE: Final = "\u2581"
# The kinds of tokens, by their number in the format.
_NORMAL: Final = 1
_CONTROL: Final = 3
_USER_DEFINED: Final = 4
_SPECIAL_TOKENS: Final = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}
# Turn ends beside the template's own: the end of a turn, and the end of a message that waits for a tool.
_TURN_ENDS: Final = ("eot_token_id", "eom_token_id")
# Settings that are read here, or that change no token: names of further special tokens, and notes of other programs.
_READ: Final = frozenset(
    {
        *("model", "pre", "tokens", "scores", "token_type", "merges"),
        *("add_bos_token", "add_eos_token", "add_space_prefix"),
    }
)
_REMARKS: Final = ("_token_id", "_token_ids", "token_type_count")
_NEUTRAL: Final = {"add_sep_token": False, "remove_extra_whitespaces": False}
# Each piece of a sentencepiece vocabulary is tried at every place where it can be cut in two.
_LONGEST_PIECE: Final = 1_000
_ALL_PIECES: Final = 20_000_000
# Phi-3's control tokens swallow the white space after them, except these.
_KEEPING_SPACE: Final = frozenset({"<unk>", "<s>", "<|endoftext|>"})


def build_gguf_tokenizer(name: str, architecture: str, vocabulary: Mapping[str, Any]) -> PreTrainedTokenizerFast:
    """Build the tokenizer.

    Args:
        name: The model's name as the user gave it.
        architecture: The file's architecture.
        vocabulary: The file's settings after ``tokenizer.``.

    Raises:
        UnsupportedArchitectureError: The file names an unknown vocabulary or split, or has a setting that is not read
            here.
        ModelError: The vocabulary is damaged.
    """
    settings = {key.removeprefix("ggml."): value for key, value in vocabulary.items() if key.startswith("ggml.")}
    for key, value in settings.items():
        if key not in _READ and not key.endswith(_REMARKS) and value != _NEUTRAL.get(key, ()):
            raise _unknown(name, f"the setting tokenizer.ggml.{key}")
    _check(name, settings)
    kind = settings["model"]
    if kind == "gpt2":
        backend, adds_bos = _byte_level(name, settings)
    elif kind in ("llama", "gemma4"):  # the second has merges in place of scores that mean something
        backend, adds_bos = _sentence_pieces(name, settings), True
    else:
        raise _unknown(name, f"a vocabulary of the kind {kind!r:.40}")
    backend.add_special_tokens(
        _added(settings, _CONTROL, strips=architecture in {"phi3", "phimoe"} and kind == "llama")
    )
    backend.add_tokens(_added(settings, _USER_DEFINED, strips=False))
    tokens = settings["tokens"]
    special = {token: tokens[settings[key]] for token, key in _SPECIAL_TOKENS.items() if settings.get(key) is not None}
    begins = special.get("bos_token") if settings.get("add_bos_token", adds_bos) else None
    ends = special.get("eos_token") if settings.get("add_eos_token", False) else None
    _surround(backend, begins, ends)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **special)
    tokenizer.chat_template = _template(name, vocabulary.get("chat_template"))
    return tokenizer


def gguf_turn_end_ids(vocabulary: Mapping[str, Any]) -> frozenset[int]:
    """Token ids that a file names as ends of a turn.

    Args:
        vocabulary: The file's settings after ``tokenizer.``, from which a tokenizer was built.
    """
    ids = (vocabulary.get(f"ggml.{key}") for key in _TURN_ENDS)
    return frozenset(token_id for token_id in ids if token_id is not None)


def _unknown(name: str, what: str) -> UnsupportedArchitectureError:
    return UnsupportedArchitectureError(
        f"model {name}: {what} cannot be read from a GGUF file; use the model's safetensors, or a newer GGUF file of it"
    )


def _check(name: str, settings: Mapping[str, Any]) -> None:
    """Refuse a vocabulary whose parts do not fit together."""
    if (what := _damaged_list(settings) or _damaged_choice(settings)) is not None:
        raise ModelError(f"model {name}: the vocabulary of the GGUF file is damaged ({what}); fetch it again")


def _damaged_list(settings: Mapping[str, Any]) -> str | None:
    tokens = settings.get("tokens")
    if not isinstance(tokens, list) or not tokens or not all(isinstance(token, str) for token in tokens):
        return "it has no list of tokens"
    if len(set(tokens)) != len(tokens):
        return "a token is there twice"
    for key in ("token_type", "scores"):
        numbers = settings.get(key, [0] * len(tokens))
        if not isinstance(numbers, list) or len(numbers) != len(tokens) or isinstance(numbers[0], str):
            return f"{key} is not one number for each token"
    merges = settings.get("merges", [])
    if not isinstance(merges, list) or not all(isinstance(merge, str) and merge.count(" ") == 1 for merge in merges):
        return "merges are not pairs"
    return None


def _damaged_choice(settings: Mapping[str, Any]) -> str | None:
    for key in (*_SPECIAL_TOKENS.values(), *_TURN_ENDS):
        token_id = settings.get(key)
        if token_id is not None and not (type(token_id) is int and 0 <= token_id < len(settings["tokens"])):
            return f"{key} is {token_id!r:.40}"
    for key in ("add_bos_token", "add_eos_token", "add_space_prefix"):
        if not isinstance(settings.get(key, False), bool):
            return f"{key} is {settings[key]!r:.40}"
    return None if "model" in settings else "it does not say of which kind it is"


def _template(name: str, template: object) -> str | None:
    if template is not None and not isinstance(template, str):
        raise ModelError(f"model {name}: the chat template of the GGUF file is no text; fetch it again")
    return template


def _byte_level(name: str, settings: Mapping[str, Any]) -> tuple[Tokenizer, bool]:
    """Bytes spelled as characters, merged; and whether a prompt begins with the first token."""
    pre = settings.get("pre")
    if not isinstance(pre, str) or pre not in WORD_SPLITS:
        raise _unknown(name, f"the split of its text into words ({'unnamed' if pre is None else repr(pre)[:40]})")
    split = WORD_SPLITS[pre]
    unknown = settings.get("unknown_token_id")
    backend = Tokenizer(
        BPE(
            {token: i for i, token in enumerate(settings["tokens"])},
            [tuple(merge.split(" ")) for merge in settings.get("merges", [])],
            unk_token=None if unknown is None else settings["tokens"][unknown],
            ignore_merges=split.whole_words,
        )
    )
    backend.pre_tokenizer = split.pre_tokenizer()
    backend.decoder = decoders.ByteLevel()
    return backend, split.adds_bos


def _sentence_pieces(name: str, settings: Mapping[str, Any]) -> Tokenizer:
    """Characters merged in the order of the pieces' scores; text that is no piece is spelled in bytes.

    Every stretch of text between special tokens begins with a space, as in llama.cpp and in the tokenizer.json of Llama
    2, Mistral 7B and Phi-3. GGUF files do not record what later models do differently.
    """
    tokens = settings["tokens"]
    unknown = settings.get("unknown_token_id")
    if "merges" in settings:
        merges = [tuple(merge.split(" ")) for merge in settings["merges"]]
    elif "scores" in settings:
        merges = _merges_by_score(name, tokens, settings["scores"], settings.get("token_type"))
    else:
        raise ModelError(f"model {name}: the GGUF file has neither merges nor scores of its tokens; fetch it again")
    backend = Tokenizer(
        BPE(
            {token: i for i, token in enumerate(tokens)},
            merges,
            unk_token=None if unknown is None else tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    spaced = settings.get("add_space_prefix", True)
    prepend = [normalizers.Prepend(_SPACE)] if spaced else []
    strip = [decoders.Strip(" ", 1, 0)] if spaced else []
    backend.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(" ", _SPACE)])
    backend.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return backend


def _merges_by_score(
    name: str, tokens: list[str], scores: list[float], kinds: list[int] | None
) -> list[tuple[str, str]]:
    """The merges that a list of scored pieces implies: a piece is made of any two others, the best-scored first."""
    pieces = {token: i for i, token in enumerate(tokens) if kinds is None or kinds[i] == _NORMAL}
    if sum(map(len, pieces)) > _ALL_PIECES or max(map(len, pieces), default=0) > _LONGEST_PIECE:
        raise ModelError(f"model {name}: the pieces of its vocabulary are longer than any; fetch the GGUF file again")
    found = [
        (-scores[i], i, pieces[left], pieces[right], left, right)
        for piece, i in pieces.items()
        for left, right in ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        if left in pieces and right in pieces
    ]
    return [(left, right) for *_, left, right in sorted(found)]


def _added(settings: Mapping[str, Any], kind: int, *, strips: bool) -> list[AddedToken]:
    """The tokens of one kind. They are found whole in a text before it is cut into words."""
    return [
        AddedToken(token, normalized=False, special=kind == _CONTROL, rstrip=strips and token not in _KEEPING_SPACE)
        for token, this in zip(settings["tokens"], settings.get("token_type", []), strict=False)
        if this == kind and token
    ]


def _surround(backend: Tokenizer, begins: str | None, ends: str | None) -> None:
    """Let a prompt begin and end with these tokens."""
    if begins is None and ends is None:
        backend.post_processor = processors.ByteLevel(trim_offsets=False)
        return
    around = [token for token in (begins, ends) if token is not None]
    backend.post_processor = processors.TemplateProcessing(
        single=[*([begins] if begins else []), "$A", *([ends] if ends else [])],
        special_tokens=[(token, backend.token_to_id(token)) for token in dict.fromkeys(around)],
    )
