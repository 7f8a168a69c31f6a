"""Tokenizers out of GGUF files cut text as the tokenizers do that they were made of."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from helix_jobs.engine.loading.gguf_splits import WORD_SPLITS
from helix_jobs.engine.loading.gguf_tokenizer import build_gguf_tokenizer
from helix_jobs.engine.loading.pretrained import TRANSFORMERS_MAJOR
from helix_jobs.errors import ModelError, UnsupportedArchitectureError
from tests.unit.engine.model_files import load, write_gguf

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedTokenizerFast

CORPUS = ["the quick brown fox jumps over the lazy dog and runs home to sleep", "hello world, hello words", "12 345 6"]
PARTS = ["the", "hello", " ", "  ", "\n", "\n\n", "\t", "12", "3456", "a1b2", "don't", "I'LL", "é", "日本語", "한국어"]
PARTS += [
    "!?",
    "...",
    "x=1;",
    "//",
    "CamelCase",
    "ДЖд",
    "²",
    "½",
    "٣٤",
    "🙂",
    "<|end|>",
    "\r\n",
    "/\n",
    "\u00a0",
    "_",
    "#if",
]


def texts(count: int = 300) -> list[str]:
    """Words, digits, signs, line breaks and scripts in every order."""
    dice = random.Random(7)
    return ["".join(dice.choices(PARTS, k=dice.randint(1, 12))) for _ in range(count)]


def byte_level(pre_tokenizer: pre_tokenizers.PreTokenizer) -> Tokenizer:
    """A tokenizer of its own, trained with this split."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizer
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<s>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([*CORPUS * 5, *texts(60)], trainer)
    return made


def sentence_pieces(*, spaced: bool) -> Tokenizer:
    """A tokenizer as Llama 2 has it."""
    made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    prepend = [normalizers.Prepend("\u2581")] if spaced else []
    made.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(" ", "\u2581")])
    made.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    made.train_from_iterator(
        CORPUS * 5, trainers.BpeTrainer(vocab_size=400, special_tokens=specials, show_progress=False)
    )
    made.pre_tokenizer = None
    made.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in ("<s>", "</s>")])
    strip = [decoders.Strip(" ", 1, 0)] if spaced else []
    made.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return made


def vocabulary(made: Tokenizer, kind: str, **settings: Any) -> dict[str, Any]:
    """What a GGUF file says of it, as llama.cpp's converter writes it."""
    tokens = sorted(made.get_vocab(), key=made.get_vocab().__getitem__)
    special = {"<unk>": 2, "<s>": 3, "</s>": 3, "<|end|>": 3}
    kinds = [6 if token.startswith("<0x") else special.get(token, 1) for token in tokens]
    found = {
        "model": kind,
        "tokens": tokens,
        "token_type": kinds,
        "bos_token_id": tokens.index("<s>"),
        "eos_token_id": tokens.index("</s>" if kind == "llama" else "<|end|>"),
    }
    if kind == "llama":
        # The trainer numbers the pieces in the order of its merges; a score is that rank.
        found |= {"scores": [-float(i) for i in range(len(tokens))], "unknown_token_id": 0}
    else:
        found |= {"merges": [" ".join(pair) for pair in _merges(made)]}
    return {f"ggml.{key}": value for key, value in {**found, **settings}.items()}


def _merges(made: Tokenizer) -> list[list[str]]:
    return [list(pair) for pair in json.loads(made.to_str())["model"]["merges"]]


def assert_same(built: PreTrainedTokenizerFast, made: Tokenizer, begins: list[int]) -> None:
    for text in texts():
        ids = made.encode(text, add_special_tokens=False).ids
        assert built(text, add_special_tokens=False)["input_ids"] == ids, text
        assert built(text)["input_ids"] == begins + ids, text
        assert built.decode(ids) == made.decode(ids, skip_special_tokens=False), text


DIGITS = pre_tokenizers.Sequence(
    [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
)


def split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


# As they stand in the tokenizer.json of Llama 3, Qwen 2.5 and 3.5, and Seed-Coder.
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN_35 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
SEED_CODER = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# As llama.cpp quotes it from K-EXAONE's tokenizer.json.
EXAONE_MOE = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
)

# As the tokenizer.json of DeepSeek LLM and V2 Lite has it; of the scripts with capitals these are enough for the texts.
DEEPSEEK = pre_tokenizers.Sequence(
    [
        *(
            pre_tokenizers.Split(Regex(pattern), "isolated")
            for pattern in (
                r"[\r\n]",
                r"\s?[\p{Latin}\p{Cyrillic}]+",
                "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
                r"\s+$",
                "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+",
            )
        ),
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
)


@pytest.mark.parametrize(
    ("pre", "reference", "begins"),
    [
        ("gpt-2", pre_tokenizers.ByteLevel(add_prefix_space=False), False),
        ("smollm", DIGITS, False),
        ("refact", DIGITS, False),
        ("starcoder", DIGITS, False),
        ("llama-bpe", split(LLAMA_3), True),
        ("dbrx", split(LLAMA_3), False),
        ("qwen2", split(LLAMA_3.replace("{1,3}", "")), False),
        ("glm4", split(LLAMA_3), False),
        ("qwen35", split(QWEN_35), False),
        ("seed-coder", split(SEED_CODER), False),
        ("exaone-moe", split(EXAONE_MOE), False),
        ("deepseek-llm", DEEPSEEK, False),
    ],
)
def test_a_byte_level_vocabulary(pre: str, reference: pre_tokenizers.PreTokenizer, *, begins: bool) -> None:
    made = byte_level(reference)
    built = build_gguf_tokenizer("m", "llama", vocabulary(made, "gpt2", pre=pre))
    assert_same(built, made, [0] if begins else [])


@pytest.mark.skipif(TRANSFORMERS_MAJOR < 5, reason="transformers 4 has no such table")
def test_the_names_that_transformers_knows_mean_the_same() -> None:
    table = pytest.importorskip("transformers.integrations.gguf.gguf_tokenizer_mapping").GGUF_PRE_TOKENIZER_SPLITS
    shared = sorted(WORD_SPLITS.keys() & table.keys())
    assert len(shared) > 10
    for name in shared:
        ours, theirs = WORD_SPLITS[name].pre_tokenizer(), split(table[name])
        for text in texts(100):
            assert ours.pre_tokenize_str(text) == theirs.pre_tokenize_str(text), (name, text)


@pytest.mark.parametrize(
    ("pre", "text", "words"),
    [
        ("deepseek-llm", "x = 12;\n\ny  ", ["x", " =", " ", "1", "2", ";", "\n", "\n", "y", "  "]),
        (
            "deepseek-llm",
            "\u00d7  12 (\u0410\u03a9\u10d0)",
            ["\u00d7  ", "1", "2", " (", "\u0410\u03a9", "\u10d0", ")"],
        ),
        ("deepseek-coder", "x = 12;\n\ny", ["x", " = ", "1", "2", ";", "\n", "\n", "y"]),
        ("deepseek-coder", "if (a) 日本", ["if", " (", "a", ")", " ", "日本"]),
        ("deepseek-v3", "12345 don't\n\n日本a", ["123", "45", " don", "'t", "\n\n", "日本", "a"]),
        ("qwen35", "e\u0301t 12\n", ["e\u0301t", " ", "1", "2", "\n"]),
        ("hunyuan-dense", "12345 a", ["123", "45", " a"]),
        (
            "exaone-moe",
            "one more e\u0301t  two, 12\n\n",
            ["one more e\u0301t", " ", " two", ",", " ", "1", "2", "\n\n"],
        ),
        ("exaone4", "a 42\n\nb", ["a", " 42", "\n", "\n", "b"]),
        ("tekken", "12 MyWord/\n\n", ["1", "2", " My", "Word", "/\n\n"]),
        ("gpt-4o", "I'll 1234", ["I'll", " ", "123", "4"]),
        ("smollm", "a 42\n\nb", ["a", " ", "4", "2", "\n", "\n", "b"]),
        ("llama-bpe", "a 42\n\nb", ["a", " ", "42", "\n\n", "b"]),
    ],
)
def test_words_of_other_splits(pre: str, text: str, words: list[str]) -> None:
    pieces = WORD_SPLITS[pre].pre_tokenizer().pre_tokenize_str(text)
    assert [text[start:end] for _, (start, end) in pieces] == words


def test_pieces_with_merges_of_their_own() -> None:
    """As Gemma 4 has them, whose scores say nothing."""
    made = sentence_pieces(spaced=False)
    merges = [" ".join(pair) for pair in _merges(made)]
    scores = [-1000.0] * made.get_vocab_size()
    settings = vocabulary(made, "llama", model="gemma4", merges=merges, scores=scores, add_space_prefix=False)
    assert_same(build_gguf_tokenizer("m", "gemma4", settings), made, [1])


@pytest.mark.parametrize("spaced", [True, False])
def test_a_sentencepiece_vocabulary(*, spaced: bool) -> None:
    made = sentence_pieces(spaced=spaced)
    settings = {} if spaced else {"add_space_prefix": False}
    built = build_gguf_tokenizer("m", "llama", vocabulary(made, "llama", **settings))
    assert_same(built, made, [1])


def test_the_control_tokens_of_phi_3_swallow_what_is_behind_them() -> None:
    built = build_gguf_tokenizer("m", "phi3", vocabulary(sentence_pieces(spaced=True), "llama"))
    assert built("</s>\nthe")["input_ids"] == built("</s>the")["input_ids"]


def test_what_begins_and_ends_a_prompt() -> None:
    made = byte_level(DIGITS)
    for settings, ids in (
        ({}, [7]),
        ({"add_bos_token": True}, [0, 7]),
        ({"add_eos_token": True}, [7, 1]),
        ({"add_bos_token": True, "add_eos_token": True}, [0, 7, 1]),
    ):
        built = build_gguf_tokenizer("m", "llama", vocabulary(made, "gpt2", pre="smollm", **settings))
        assert built(built.decode([7]))["input_ids"] == ids


def test_a_word_that_is_a_token_is_one_where_merges_do_not_reach_it() -> None:
    settings = vocabulary(byte_level(split(LLAMA_3)), "gpt2", pre="llama-bpe")
    settings["ggml.tokens"].append("zqzqz")
    settings["ggml.token_type"].append(1)
    last = len(settings["ggml.tokens"]) - 1
    assert build_gguf_tokenizer("m", "llama", settings)("zqzqz")["input_ids"] == [0, last]
    settings["ggml.pre"] = "dbrx"
    assert last not in build_gguf_tokenizer("m", "llama", settings)("zqzqz")["input_ids"]


@pytest.mark.parametrize("pre", [None, "default", "made-up", 7, ["gpt-2"]])
def test_an_unknown_split_is_refused(pre: Any) -> None:
    settings = vocabulary(byte_level(DIGITS), "gpt2", pre=pre)
    if pre is None:
        del settings["ggml.pre"]
    with pytest.raises(
        UnsupportedArchitectureError, match=r"the split of its text into words .*; use the model's safetensors"
    ):
        build_gguf_tokenizer("m", "llama", settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "t5"}, "a vocabulary of the kind 't5'"),
        ({"precompiled_charsmap": [1, 2]}, "tokenizer.ggml.precompiled_charsmap"),
        ({"remove_extra_whitespaces": True}, "tokenizer.ggml.remove_extra_whitespaces"),
        ({"something_new": 1}, "tokenizer.ggml.something_new"),
    ],
)
def test_what_nobody_reads_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedArchitectureError, match=f"{message} cannot be read from a GGUF file"):
        build_gguf_tokenizer("m", "llama", vocabulary(byte_level(DIGITS), "gpt2", pre="smollm", **settings))


@pytest.mark.parametrize(
    "settings",
    [
        {"tokens": []},
        {"tokens": ["a", "a"]},
        {"tokens": "abc"},
        {"token_type": [1]},
        {"scores": ["a"]},
        {"merges": ["a b c"]},
        {"eos_token_id": 10**6},
        {"bos_token_id": "a"},
        {"eot_token_id": 10**6},
        {"eom_token_id": [1]},
        {"add_bos_token": 3},
    ],
)
def test_a_damaged_vocabulary(settings: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="the vocabulary of the GGUF file is damaged"):
        build_gguf_tokenizer("m", "llama", vocabulary(byte_level(DIGITS), "gpt2", pre="smollm", **settings))


def test_the_ends_of_turns_that_a_file_names_end_answers_to_messages(tmp_path: Path) -> None:
    """Llama 3.1's end of a message to a tool stands in no answer that its template renders."""
    named = {"tokenizer.ggml.eot_token_id": 40, "tokenizer.ggml.eom_token_id": 41}
    for general, ids in (({}, {1}), (named, {1, 40, 41})):
        write_gguf(tmp_path / "tiny.gguf", general=general)
        models = load(tmp_path / "tiny.gguf")
        assert (models.eos_token_ids, models.turn_end_ids) == ({1}, ids)


def test_the_split_of_a_file_is_honoured(tmp_path: Path) -> None:
    for pre, pieces in (("smollm", 2), ("gpt-2", 1)):
        write_gguf(tmp_path / f"{pre}.gguf", pre=pre)
        tokenizer = load(tmp_path / f"{pre}.gguf").tokenizer
        assert len(tokenizer("42")["input_ids"]) == 2
        assert len(tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("42")) == pieces
