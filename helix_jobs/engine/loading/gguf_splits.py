r"""How a byte-level vocabulary of a GGUF file cuts text into words before it looks for tokens.

The file only names the split (``tokenizer.ggml.pre``). The name stands for the patterns in the tokenizer.json of the
models that use it. A wrong pattern silently makes other tokens of the same text: a line break too many, or numbers cut
by threes instead of digit by digit. So only names whose patterns are known are served.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tokenizers import Regex
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Sequence, Split


@dataclass(frozen=True, slots=True)
class WordSplit:
    """The split that one name stands for.

    Attributes:
        patterns: Regular expressions, applied one after another; each match is a separate piece.
        digits_singly: Digits are separated first.
        gpt2_words: The remaining text is cut with GPT-2's own pattern.
        whole_words: A word that is a token stays whole, whatever its merges would make of it.
        adds_bos: A prompt begins with the beginning-of-text token, unless the file says otherwise.
    """

    patterns: tuple[str, ...] = ()
    digits_singly: bool = False
    gpt2_words: bool = False
    whole_words: bool = False
    adds_bos: bool = False

    def pre_tokenizer(self) -> PreTokenizer:
        """The tokenizers library's form of it, ending in bytes spelled as characters."""
        steps: list[PreTokenizer] = [Digits(individual_digits=True)] if self.digits_singly else []
        steps += [Split(Regex(pattern), behavior="isolated") for pattern in self.patterns]
        steps.append(ByteLevel(add_prefix_space=False, use_regex=self.gpt2_words))
        return Sequence(steps)


_CONTRACTIONS: Final = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD: Final = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SPACES: Final = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_SIGNS: Final = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_UPPER: Final = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER: Final = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
# A word in which capitals, if any, come first.
_CASED: Final = (rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*")
_SIGNS_AND_SLASHES: Final = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"

_CL100K: Final = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}{{1,3}}|{_SIGNS}|{_SPACES}"
_QWEN2: Final = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}|{_SIGNS}|{_SPACES}"
# A word may have marks, as combined accents are.
_QWEN35: Final = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
)
_TEKKEN: Final = "|".join((*_CASED, r"\p{N}", _SIGNS_AND_SLASHES, _SPACES))
_O200K: Final = "|".join((*(f"{word}{_CONTRACTIONS}?" for word in _CASED), r"\p{N}{1,3}", _SIGNS_AND_SLASHES, _SPACES))
_SEED_CODER: Final = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}"
# Words with one space between them stay together: K-EXAONE has tokens of several words.
_EXAONE_MOE: Final = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
)
# Letters that have a case, as DeepSeek's own files list them: fewer than Unicode has today.
_DEEPSEEK_CASED: Final = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    "\u0376-\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481"
    "\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b"
    "\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b"
    "\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb"
    "\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128"
    "\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183-\u2184\u2c00-\u2c7b\u2c7e-\u2ce4"
    "\u2ceb-\u2cee\u2cf2-\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf"
    "\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3"
    "\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_DEEPSEEK_ASIAN: Final = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_DEEPSEEK: Final = (
    r"[\r\n]",
    rf"\s?[{_DEEPSEEK_CASED}]+",
    "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
    r"\s+$",
    _DEEPSEEK_ASIAN,
    r"\p{N}",
)
_DEEPSEEK_CODER: Final = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _DEEPSEEK_ASIAN, r"\p{N}")
_DEEPSEEK_3: Final = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    "|".join(
        (
            r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+",
            r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+",
            r" ?[\p{P}\p{S}]+[\r\n]*",
            _SPACES,
        )
    ),
)

_GPT2_WORDS: Final = WordSplit(gpt2_words=True)
_DIGITS_AND_GPT2_WORDS: Final = WordSplit(digits_singly=True, gpt2_words=True)
_LLAMA_3: Final = WordSplit((_CL100K,), whole_words=True, adds_bos=True)

WORD_SPLITS: Final = {
    **dict.fromkeys(("gpt-2", "mpt", "olmo", "mellum", "trillion", "a.x-4.0", "gigachat", "exaone4"), _GPT2_WORDS),
    **dict.fromkeys(("smollm", "refact", "starcoder", "command-r", "codeshell"), _DIGITS_AND_GPT2_WORDS),
    **dict.fromkeys(
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"), _LLAMA_3
    ),
    **dict.fromkeys(("dbrx", "smaug-bpe", "glm4", "chatglm-bpe"), WordSplit((_CL100K,))),
    **dict.fromkeys(
        ("qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "stablelm2", "hunyuan"), WordSplit((_QWEN2,))
    ),
    "qwen35": WordSplit((_QWEN35,)),
    "exaone-moe": WordSplit((_EXAONE_MOE,)),
    **dict.fromkeys(("gpt-4o", "kanana2", "minimax-m2"), WordSplit((_O200K,))),
    "tekken": WordSplit((_TEKKEN,), whole_words=True, adds_bos=True),
    "seed-coder": WordSplit((_SEED_CODER,)),
    "deepseek-llm": WordSplit(_DEEPSEEK),
    "deepseek-coder": WordSplit(_DEEPSEEK_CODER),
    **dict.fromkeys(("deepseek-v3", "hunyuan-dense"), WordSplit(_DEEPSEEK_3)),
}
