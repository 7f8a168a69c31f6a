"""Small tokenizers of the kinds in use, made on the spot."""

from __future__ import annotations

import json

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from helix_jobs.engine.text.codec import TextCodec
from tests.unit.engine.tiny_models import tokenizer

TEXTS = ["the quick brown fox jumps over the lazy dog", "hello world this is a small text", "one two three"] * 20

EMOJI = "a😀b😃😄 é€\N{FAMILY}\u200d🏽漢字"


def byte_level():
    """As GPT-2, Qwen and Llama 3 have it; trained on one emoji, so that a token may hold a part of a character."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=420, special_tokens=["</s>"], initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator([*TEXTS, *[" 😀 😀"] * 20], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


def sentence_pieces(*, bytes_too=True):
    """As Llama 2, Mistral and Phi-3 have it: a space before each text, taken away on decoding; bytes as tokens."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=bytes_too))
    backend.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    fallback = [f"<0x{byte:02X}>" for byte in range(256)] if bytes_too else []
    trainer = BpeTrainer(
        vocab_size=160 + len(fallback), special_tokens=["<unk>", "<s>", "</s>", *fallback], show_progress=False
    )
    backend.train_from_iterator(TEXTS, trainer)
    backend.pre_tokenizer = None
    parts = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(parts)
    # In real files the byte tokens are plain tokens of the vocabulary.
    description = json.loads(backend.to_str())
    description["added_tokens"] = [t for t in description["added_tokens"] if t["content"] not in fallback]
    backend = Tokenizer.from_str(json.dumps(description))
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def codec(tok):
    return TextCodec(tok, len(tok))


def ids(tok, text):
    return tok(text, add_special_tokens=False)["input_ids"]


KINDS = {"byte level": byte_level, "sentence pieces": sentence_pieces}


def chat_tokenizer():
    made = tokenizer()
    made.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    made.add_tokens([AddedToken("\n", special=False), AddedToken("ab", special=False)])
    return made


def byte_level_with_bos():
    """Like GPT-2's: byte-level, with merges, a BOS token before every text, and cut and filled up as a file may ask."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    from tokenizers.trainers import BpeTrainer

    trainer = BpeTrainer(
        vocab_size=320,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["hello world, hello there"] * 9, trainer)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    made = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    made.chat_template = "{{ bos_token }}{% for m in messages %}{{ m.content }}</s>{% endfor %}"
    made.backend_tokenizer.enable_truncation(5)
    made.backend_tokenizer.enable_padding(length=64)
    return made
