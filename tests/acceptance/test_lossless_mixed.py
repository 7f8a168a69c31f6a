"""What a request can ask for, all at once: 120 prompts in one batch of 32, equal to transformers at batch 1.

Every prompt asks for something of its own: a schema, penalties, a least number of tokens, log probabilities, two
sampled choices, or several of them. The engine drafts with lookup, forced tokens and the int8 copy. transformers
generates each answer alone, with its own processors; the grammar's mask comes from the grammar library itself, and
sampled tokens from Helix' random numbers, so both sides draw with the same ones.

A command of its own: ``python -m pytest -m slow -s tests/acceptance/test_lossless_mixed.py``.
"""

from __future__ import annotations

import json
from pathlib import Path

import llguidance.hf
import llguidance.numpy
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LogitsProcessor,
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
)

from helix_jobs.engine.config import CacheConfig, EngineConfig, SpeculationConfig
from helix_jobs.engine.constraint import Constraint
from helix_jobs.engine.engine import Engine
from helix_jobs.engine.grammar_text import grammar_text
from helix_jobs.engine.loading.demo_model import ensure_demo_model
from helix_jobs.engine.loading.load_engine import with_compiled_kernels
from helix_jobs.engine.loading.model_loader import load_models
from helix_jobs.engine.request import Request
from helix_jobs.engine.sampling.random_numbers import Purpose, choice_seed, uniform
from helix_jobs.engine.sampling_params import SamplingParams

pytestmark = [pytest.mark.slow, pytest.mark.demo]

PROMPTS = Path(__file__).parent.parent / "data" / "spec_bench.jsonl"
NUM_PROMPTS = 120
MAX_TOKENS = 40
# Logits near 32 were seen to differ by 0.00006 between one pass over a text and one pass a token.
LOGPROB_TOLERANCE = 1e-3
# A draw is a number on the line of cumulated probabilities. Inside a string nearly all tokens of the vocabulary are
# possible and the line is cut every 0.00002, so that a number can fall on the other side of a cut through rounding.
DRAW_TOLERANCE = 1e-4
SCHEMA = {
    "type": "object",
    "properties": {
        "topic": {"type": "string", "maxLength": 40},
        "kind": {"enum": ["question", "task", "story"]},
        "words": {"type": "array", "items": {"type": "string", "maxLength": 12}, "minItems": 1, "maxItems": 3},
        "length": {"type": "integer"},
    },
    "required": ["topic", "kind", "words", "length"],
    "additionalProperties": False,
}
CONSTRAINTS = {
    "schema": Constraint("json_schema", json.dumps(SCHEMA)),
    "choice": Constraint("choice", json.dumps(["yes, surely", "yes, perhaps", "no"])),
    "regex": Constraint("regex", r"(Step \d{1,2}: [a-z ]{5,30}\. ){2,3}"),
}
# What every sixth prompt asks for, by its place among the six.
ASKS: list[tuple[str | None, dict]] = [
    ("schema", {"logprobs": 2}),
    (None, {"repetition_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": 0.3}),
    (None, {"min_tokens": 30, "logprobs": 5}),
    (None, {"n": 2, "temperature": 0.8, "top_k": 50, "logprobs": 0}),
    ("schema", {"n": 2, "temperature": 0.7, "frequency_penalty": 0.4, "min_tokens": 5}),
    ("choice", {"repetition_penalty": 1.1}),
    ("regex", {"logprobs": 1, "presence_penalty": 0.2}),
    (None, {}),
]


def requests():
    for number, line in enumerate(PROMPTS.read_text(encoding="utf-8").splitlines()[:NUM_PROMPTS]):
        constraint, fields = ASKS[number % len(ASKS)]
        yield Request(
            request_id=str(number),
            messages=({"role": "user", "content": json.loads(line)["turns"][0]},),
            # A line's own seed: such a request takes no drafts at adaptive depths, so each token is one final draw.
            seed=number,
            sampling_params=SamplingParams(max_tokens=MAX_TOKENS, seed=number, **fields),
            constraint=None if constraint is None else CONSTRAINTS[constraint],
        )


class Penalties(LogitsProcessor):
    """OpenAI's presence and frequency penalties, which transformers does not have."""

    def __init__(self, params: SamplingParams, num_prompt: int) -> None:
        self._params, self._num_prompt = params, num_prompt

    def __call__(self, input_ids, scores):
        counts = torch.bincount(input_ids[0, self._num_prompt :], minlength=scores.shape[1]).to(scores.dtype)
        return scores - self._params.frequency_penalty * counts - self._params.presence_penalty * (counts > 0)


class Grammar(LogitsProcessor):
    """The grammar library's mask, walked from the answer's first token on at each call."""

    def __init__(self, tokenizer, constraint: Constraint, num_prompt: int, ends: list[int]) -> None:
        self._tokenizer, self._num_prompt, self._ends = tokenizer, num_prompt, ends
        self._matcher = llguidance.LLMatcher(tokenizer, grammar_text(constraint))

    def __call__(self, input_ids, scores):
        matcher = self._matcher.deep_copy()
        assert matcher.consume_tokens(input_ids[0, self._num_prompt :].tolist()), matcher.get_error()
        mask = llguidance.numpy.allocate_token_bitmask(1, self._tokenizer.vocab_size)
        llguidance.numpy.fill_next_token_bitmask(matcher, mask, 0)
        masked = scores.clone()
        llguidance.numpy.apply_token_bitmask_inplace(masked.numpy(), mask)
        # The library knows one end token; the model's others end an answer as well.
        if masked[0, self._ends[0]] > float("-inf"):
            masked[0, self._ends] = scores[0, self._ends]
        return masked


class Draw(LogitsProcessor):
    """Leaves the one token that Helix' random number draws from what the warpers left."""

    def __init__(self, seed: int, choice: int) -> None:
        self._seed = choice_seed(seed, choice)

    def __call__(self, input_ids, scores):
        cumulative = torch.softmax(scores[0].float(), dim=0).double().cumsum(0)
        number = uniform(self._seed, input_ids.shape[1], Purpose.FINAL)
        token = int(torch.searchsorted(cumulative, number * cumulative[-1], right=True))
        return torch.full_like(scores, float("-inf")).index_fill_(1, torch.tensor([token]), 0.0)


class References:
    """transformers' answers at batch 1."""

    def __init__(self, folder: Path, eos: frozenset[int]) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self._eos = sorted(eos)
        self._tokenizer = llguidance.hf.from_tokenizer(
            AutoTokenizer.from_pretrained(folder), n_vocab=self._model.config.vocab_size, eos_token=self._eos[0]
        )

    def _processors(self, request: Request, num_prompt: int) -> LogitsProcessorList:
        """What shapes a token's distribution, in transformers' order; the draw itself is not among them."""
        params = request.sampling_params
        processors = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(params.repetition_penalty)])
        processors.append(Penalties(params, num_prompt))
        if params.min_tokens:
            processors.append(MinNewTokensLengthLogitsProcessor(num_prompt, params.min_tokens, self._eos))
        if request.constraint is not None:
            processors.append(Grammar(self._tokenizer, request.constraint, num_prompt, self._eos))
        if params.temperature:
            processors.append(TemperatureLogitsWarper(params.temperature))
            if params.top_k:
                processors.append(TopKLogitsWarper(params.top_k))
        return processors

    @torch.no_grad()
    def distance_of_draw(self, request: Request, prompt_ids, choice: int, before: list[int], token: int) -> float:
        """How far the number drawn lies from the part of the line that belongs to a token; 0 inside it."""
        # [1, tokens]
        ids = torch.tensor([[*prompt_ids, *before]])
        logits = self._model(ids, logits_to_keep=1).logits[:, -1].float()
        scores = self._processors(request, len(prompt_ids))(ids, logits)
        # [vocab_size]
        cumulative = torch.softmax(scores[0], dim=0).double().cumsum(0)
        number = uniform(choice_seed(request.seed, choice), ids.shape[1], Purpose.FINAL) * float(cumulative[-1])
        low = float(cumulative[token - 1]) if token else 0.0
        return max(low - number, number - float(cumulative[token]), 0.0)

    @torch.no_grad()
    def answer(self, request: Request, prompt_ids, choice: int):
        """Token ids without the end token, and ``[tokens, vocab_size]`` log probabilities before all processors."""
        params, num_prompt = request.sampling_params, len(prompt_ids)
        processors = self._processors(request, num_prompt)
        if params.temperature:
            processors.append(Draw(request.seed, choice))
        # [1, prompt_tokens]
        ids = torch.tensor([list(prompt_ids)])
        out = self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=MAX_TOKENS,
            eos_token_id=self._eos,
            pad_token_id=self._eos[0],
            logits_processor=processors,
            return_dict_in_generate=True,
            output_logits=True,
        )
        new = out.sequences[0, num_prompt:].tolist()
        logprobs = torch.cat(out.logits).float().log_softmax(dim=-1)
        if new[-1] in self._eos:
            new.pop()
        return new, logprobs[: len(new)]


@pytest.mark.parametrize("adaptive", [True, False], ids=["adaptive", "fixed-depth"])
def test_120_mixed_requests_equal_transformers(demo_home, tmp_path, adaptive):
    models = load_models("demo", "int8", device=torch.device("cpu"), dtype="float32", home=demo_home)
    models = with_compiled_kernels(models, "auto", tmp_path)
    speculation = SpeculationConfig(drafters=("lookup",), adaptive=adaptive, depth=4)
    engine = Engine(models, EngineConfig(max_batch_size=32, speculation=speculation), CacheConfig(num_blocks=1500))
    # At a fixed depth sampled tokens are drawn otherwise: there the greedy requests are compared.
    asked = [one for one in requests() if adaptive or one.sampling_params.is_greedy]
    encoded = [engine.encode(request) for request in asked]
    results = engine.generate(encoded)
    engine.check_integrity()
    counters = engine.counters()
    references = References(ensure_demo_model(demo_home, print), models.eos_token_ids | models.turn_end_ids)
    answers, differing, tipped, worst = 0, [], [], 0.0
    for request, prompt, result in zip(asked, encoded, results, strict=True):
        assert result.error is None, result.error
        for choice in result.choices:
            answers += 1
            expected, logprobs = references.answer(request, prompt.prompt_token_ids, choice.choice)
            output = list(choice.output_token_ids)
            if output != expected:
                place = next(
                    (i for i, pair in enumerate(zip(output, expected, strict=False)) if len(set(pair)) > 1), -1
                )
                distance = (
                    references.distance_of_draw(
                        request, prompt.prompt_token_ids, choice.choice, output[:place], output[place]
                    )
                    if place >= 0 and not request.sampling_params.is_greedy
                    else float("inf")
                )
                (tipped if distance <= DRAW_TOLERANCE else differing).append(
                    (request.request_id, choice.choice, distance)
                )
                continue
            if request.sampling_params.logprobs is not None:
                found = torch.tensor([one.logprob for one in choice.logprobs][: len(expected)])
                wanted = logprobs.gather(1, torch.tensor(expected)[:, None])[:, 0]
                worst = max(worst, float((found - wanted).abs().max()))
            if request.constraint is not None and choice.finish_reason == "stop":
                assert choice.is_valid
    print(  # noqa: T201  (what the command is run for)
        f"\n{answers} answers of {len(results)} prompts, {answers - len(differing) - len(tipped)} equal; numbers drawn "
        f"that fell on the other side of a cut, and their distance from it: {tipped}; log probabilities differ by "
        f"{worst:.1e} at most; {counters}"
    )
    assert counters.accepted_tokens > 0
    assert differing == []
    assert worst <= LOGPROB_TOLERANCE
