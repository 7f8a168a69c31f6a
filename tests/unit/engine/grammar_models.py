"""Tiny random models behind a byte-level tokenizer that has learned JSON, and what transformers makes of a grammar."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedTokenizerFast

from helix_jobs.engine.config import CacheConfig, EngineConfig, SpeculationConfig
from helix_jobs.engine.constraint import Constraint
from helix_jobs.engine.engine import Engine
from helix_jobs.engine.grammar.llguidance_grammar import compile_grammar
from helix_jobs.engine.grammar.vocabulary import TokenTable
from helix_jobs.engine.grammar_text import grammar_text
from helix_jobs.engine.reasoning import ReasoningForm
from helix_jobs.engine.request import EncodedRequest
from helix_jobs.engine.sampling_params import SamplingParams
from tests.unit.engine.tiny_models import EOS, loaded, tiny_model

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel

    from helix_jobs.engine.matcher import Grammar

SPECIAL = ("<eos>", "<end>", "</think>")
END, THINK_END = 1, 2
# A few rows more than the tokenizer has tokens, as in many models.
PADDING = 21
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "colours": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 3},
        "married": {"type": ["boolean", "null"]},
    },
    "required": ["name", "age", "colours", "married"],
    "additionalProperties": False,
}
CONSTRAINTS = {
    "person": Constraint("json_schema", json.dumps(PERSON)),
    "spaced": Constraint("json_schema", json.dumps(PERSON), "model"),
    "object": Constraint("json_object"),
    "regex": Constraint("regex", "[a-f]{2,5}( and [0-9]{1,3}){1,4}"),
    "choice": Constraint("choice", '["positive", "negative", "neither of both", "pos"]'),
    "grammar": Constraint("grammar", 'start: item ("," item)* "."\nitem: "red" | "green" item | /[0-9]+/'),
}


@lru_cache(maxsize=1)
def json_tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    text = [
        json.dumps({"name": f"n{i}", "age": i, "colours": ["red", "green", "blue"], "married": None}) for i in range(40)
    ]
    text += ['{"name":"Ann","age":12,"colours":["red"],"married":true}', "positive negative neither of both"] * 20
    backend.train_from_iterator(
        text,
        trainers.BpeTrainer(
            vocab_size=380, special_tokens=list(SPECIAL), initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")


def vocab_size() -> int:
    return len(json_tokenizer()) + PADDING


@lru_cache(maxsize=4)
def json_model(seed: int = 0, architecture: str = "llama") -> Any:
    return tiny_model(architecture, seed=seed, vocab_size=vocab_size())


@lru_cache(maxsize=4)
def table(ends: tuple[int, ...] = (EOS,)) -> LLTokenizer:
    return TokenTable.of(json_tokenizer(), vocab_size(), ends).build()


@lru_cache(maxsize=64)
def compiled(constraint: Constraint, ends: tuple[int, ...] = (EOS,)) -> Grammar:
    return compile_grammar(constraint, table(ends))


def grammar_engine(
    draft: str = "none",
    *,
    architecture: str = "llama",
    depth: int = 4,
    adaptive: bool = False,
    drafters: Sequence[str] = (),
    num_blocks: int = 800,
    ends: Sequence[int] = (EOS,),
    **config: Any,
) -> Engine:
    served = replace(loaded(json_model(architecture=architecture), draft, ends), tokenizer=json_tokenizer())
    speculation = SpeculationConfig(depth=depth, adaptive=adaptive, drafters=tuple(drafters))
    return Engine(
        served, EngineConfig(speculation=speculation, **config), CacheConfig(num_blocks=num_blocks, block_size=4)
    )


def thinks_until(end: tuple[int, ...]) -> ReasoningForm:
    """A thinking that the prompt has opened and that these tokens end."""
    pieces = {token_id: f"<{token_id}>" for token_id in end}
    text = "".join(pieces[token_id] for token_id in end)
    return ReasoningForm(
        name="think",
        opening="<open>",
        end=text,
        opening_ids=(),
        closings=(end,),
        pieces=pieces,
        enders=frozenset({end[-1]}),
        starts_open=True,
    )


def constrained(
    name: str,
    constraint: Constraint | None,
    prompt: str = "Ann is 12",
    *,
    seed: int = 0,
    begins_after: tuple[int, ...] = (),
    ends: tuple[int, ...] = (EOS,),
    **params: Any,
) -> EncodedRequest:
    return EncodedRequest(
        request_id=name,
        prompt_token_ids=tuple(json_tokenizer().encode(prompt)),
        seed=seed,
        sampling_params=SamplingParams(**params),
        grammar=None if constraint is None else compiled(constraint, ends),
        reasoning=thinks_until(begins_after) if begins_after else None,
    )


class GrammarLogits(LogitsProcessor):  # type: ignore[misc]
    """A grammar as transformers takes it: a new matcher at each position, straight from the library."""

    def __init__(self, constraint: Constraint, num_prompt_tokens: int) -> None:
        backend = json_tokenizer().backend_tokenizer.to_str()
        tokenizer = LLTokenizer(backend, n_vocab=vocab_size(), eos_token=[EOS])
        self._origin = LLMatcher(tokenizer, grammar_text(constraint), log_level=0)
        self._start = num_prompt_tokens

    def mask(self, output_ids: Sequence[int]) -> torch.Tensor:
        matcher = self._origin.deep_copy()
        assert matcher.try_consume_tokens(list(output_ids)) == len(output_ids)
        bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8), bitorder="little")
        return torch.from_numpy(bits[: vocab_size()].astype(bool))

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        allowed = self.mask(input_ids[0, self._start :].tolist())
        return scores.masked_fill(~allowed[None], float("-inf"))


def reference(
    model: PreTrainedModel, constraint: Constraint, prompt: str = "Ann is 12", max_tokens: int = 40, **kwargs: Any
) -> tuple[int, ...]:
    """transformers' greedy generation under a grammar, at batch 1; the end token is cut off."""
    ids = torch.tensor([json_tokenizer().encode(prompt)])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=max_tokens,
        pad_token_id=EOS,
        logits_processor=LogitsProcessorList([GrammarLogits(constraint, ids.shape[1])]),
        **kwargs,
    )
    new = out[0, ids.shape[1] :].tolist()
    return tuple(new[:-1] if new and new[-1] == EOS else new)
