"""Models by the form of their calls: a template, its tokens, and a tokenizer with a token for each byte beside them."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.unit.engine.text.call_templates import CALL_TEMPLATES, MARKS
from tests.unit.engine.text.chat_templates import (
    BARE_JSON,
    CHANNEL_CALLS,
    GEMMA_CALL,
    MISTRAL_NEMO,
    NAMED_ARGUMENTS,
    QWEN3,
    XML,
)

HARMONY = ("<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|return|>", "<|call|>", "<|constrain|>")
# Form -> template, tokens that are text, and special ones.
CALL_MODELS = {
    "hermes": (QWEN3, ("<think>", "</think>", "<tool_call>", "</tool_call>"), ("<|im_start|>", "<|im_end|>")),
    "xml": (XML, ("<tool_call>", "</tool_call>"), ("<|im_start|>", "<|im_end|>")),
    "mistral_list": (MISTRAL_NEMO, (), ("[TOOL_CALLS]", "[INST]", "[/INST]")),
    "mistral": (NAMED_ARGUMENTS, (), ("[TOOL_CALLS]", "[ARGS]", "[INST]", "[/INST]")),
    "llama": (BARE_JSON, (), ()),
    "harmony": (CHANNEL_CALLS, (), HARMONY),
    "gemma": (GEMMA_CALL, (), ("<|tool_call>", "<tool_call|>", '<|"|>')),
    "glm": (CALL_TEMPLATES["glm"], MARKS["glm"], ()),
    "python": (CALL_TEMPLATES["python"], (), MARKS["python"]),
    "command": (CALL_TEMPLATES["command"], (), MARKS["command"]),
}


def byte_tokenizer(template, tokens=(), special=()):
    """A token for each byte, and those that are given."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({character: i for i, character in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", bos_token="<s>")
    made.add_tokens(list(tokens))
    made.add_special_tokens({"additional_special_tokens": list(special)})
    made.chat_template = template
    return made
