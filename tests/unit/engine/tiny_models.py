"""Tiny random models with a one-character-per-token tokenizer, in the shapes the engine serves."""

from __future__ import annotations

import copy
import itertools
import math
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from helix_jobs.engine.attention.step_layout import TokenSlice
from helix_jobs.engine.config import DEFAULT_SNAPSHOTS, CacheConfig, EngineConfig, SpeculationConfig, StateConfig
from helix_jobs.engine.engine import Engine
from helix_jobs.engine.loaded_models import LoadedModel, LoadedModels
from helix_jobs.engine.model.assembly import build_decoder
from helix_jobs.engine.model.quantize import quantize
from helix_jobs.engine.model.runner import ModelRunner
from helix_jobs.engine.request import EncodedRequest
from helix_jobs.engine.sampling_params import SamplingParams
from helix_jobs.engine.schedule.state_pool import StatePool
from helix_jobs.engine.schedule.state_table import StateTable
from tests.unit.engine.tiny_settings import ALPHABET, EOS, FAMILY_SETTINGS, VOCAB_SIZE, WITHOUT_HEAD_SETTINGS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel

    from helix_jobs.engine.model.decoder import Decoder

ARCHITECTURES = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma",
    "phi3",
    "gpt2",
    "gpt_neox",
    "lfm2",
    "qwen3_5_text",
    "granitemoehybrid",
)
# Those with layers that carry a state instead of keys and values.
RECURRENT = ("lfm2", "qwen3_5_text", "granitemoehybrid")
CPU = torch.device("cpu")
PROMPT = range(2, 14)


def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {"<eos>": EOS, "<unk>": 1, **{character: i + 2 for i, character in enumerate(ALPHABET)}}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", unk_token="<unk>")
    made.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'bad' %}{{ raise_exception('no role bad') }}{% endif %}"
        "{{ m['role'][0] }}.{{ m['content'] }}!{% endfor %}a."
    )
    return made


def tiny_config(architecture: str = "llama", **overrides: Any) -> Any:
    settings = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 6 if architecture in ("gpt2", "gpt_neox") else 2,  # these share no heads
        "head_dim": 8,
        "max_position_embeddings": 256,
        "initializer_range": 0.4,
        "bos_token_id": None,
        "eos_token_id": EOS,
        "pad_token_id": None,
        "tie_word_embeddings": False,
        "sliding_window": None,
        **FAMILY_SETTINGS.get(architecture, {}),
        **overrides,
    }
    if architecture in WITHOUT_HEAD_SETTINGS:
        settings = {key: value for key, value in settings.items() if key not in {"head_dim", "num_key_value_heads"}}
    return AutoConfig.for_model(architecture, **settings)


def tiny_model(architecture: str = "llama", seed: int = 0, vocab_size: int = VOCAB_SIZE, **overrides: Any) -> Any:
    """A random model whose greedy outputs vary: wide initial weights keep its logits far apart."""
    config = tiny_config(architecture, vocab_size=vocab_size, **overrides)
    torch.default_generator.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    for module in model.modules() if architecture == "nemotron_h" else ():
        # transformers raises a prompt's time steps to time_step_min; nothing else may differ.
        if hasattr(module, "time_step_limit"):
            module.time_step_limit = (0.0, math.inf)
    return model.eval().requires_grad_(requires_grad=False)


def roughen(model: Any) -> Any:
    """Give norms and biases weights of their own: fresh ones are ones and zeros, and hide what is left out."""
    generator = torch.Generator().manual_seed(5)
    trained = ("correction_bias", "expert_bias", "layer_scalar")
    corrections = [buffer for name, buffer in model.named_buffers() if name.endswith(trained)]
    for parameter in (*model.parameters(), *corrections):
        if parameter.dim() == 1 or not parameter.any():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    return model


def draft_for(target: PreTrainedModel, kind: str) -> LoadedModel | None:
    """A draft that never runs, always, often or hardly ever agrees with the target."""
    if kind == "none":
        return None
    if kind == "int8":
        return LoadedModel("draft-int8", quantize(build_decoder(copy_of(target))), is_int8=True)
    if kind == "same":
        return as_loaded("draft-same", copy_of(target))
    return as_loaded(
        f"draft-{kind}", tiny_model(target.config.model_type, seed=99, vocab_size=target.config.vocab_size)
    )


def as_loaded(name: str, model: PreTrainedModel) -> LoadedModel:
    """As the loader would leave it. The model itself stays whole, for the tests to compare with."""
    decoder = build_decoder(copy_of(model), keeps_origins=True)
    decoder.pack()
    return LoadedModel(name, decoder)


def copy_of(model: PreTrainedModel, dtype: torch.dtype = torch.float32) -> Any:
    """The same weights in ``dtype``. (``to`` would round the rotary frequencies as well, as no loader does.)"""
    if model.dtype is dtype:
        return copy.deepcopy(model)  # in half the time
    copied = AutoModelForCausalLM.from_config(copy.deepcopy(model.config), dtype=dtype, attn_implementation="eager")
    copied.load_state_dict(model.state_dict())
    return copied.eval().requires_grad_(requires_grad=False)


def loaded(
    target: PreTrainedModel, draft: str | LoadedModel | None = "none", eos: Sequence[int] = (EOS,)
) -> LoadedModels:
    return LoadedModels(
        target=as_loaded("tiny", target),
        draft=draft_for(target, draft) if isinstance(draft, str) else draft,
        tokenizer=tokenizer(),
        eos_token_ids=frozenset(eos),
        vocab_size=target.config.vocab_size,
        max_context=256,
    )


def tiny_engine(
    target: PreTrainedModel | None = None,
    draft: str | LoadedModel | None = "same",
    *,
    num_blocks: int = 400,
    block_size: int = 4,
    depth: int = 4,
    adaptive: bool = False,
    drafters: Sequence[str] = (),
    eos: Sequence[int] = (EOS,),
    num_snapshots: int = DEFAULT_SNAPSHOTS,
    cache_dtype: str = "auto",
    **config: Any,
) -> Engine:
    return Engine(
        loaded(target if target is not None else tiny_model(), draft, eos),
        EngineConfig(speculation=SpeculationConfig(depth=depth, adaptive=adaptive, drafters=tuple(drafters)), **config),
        CacheConfig(num_blocks=num_blocks, block_size=block_size, num_snapshots=num_snapshots, dtype=cache_dtype),
    )


def request(name: str, prompt_ids: Sequence[int], seed: int = 0, **params: Any) -> EncodedRequest:
    return EncodedRequest(
        request_id=name, prompt_token_ids=tuple(prompt_ids), seed=seed, sampling_params=SamplingParams(**params)
    )


def reference_greedy(
    model: PreTrainedModel, prompt_ids: Sequence[int], max_tokens: int, **kwargs: Any
) -> tuple[int, ...]:
    """transformers' own greedy generation at batch 1, end-of-sequence token cut off."""
    ids = torch.tensor([list(prompt_ids)])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=max_tokens, pad_token_id=EOS, **kwargs
    )
    new = out[0, ids.shape[1] :].tolist()
    return tuple(new[:-1] if new and new[-1] == EOS else new)


def greedy_beside(
    model: PreTrainedModel, prompt_ids: Sequence[int], output: Sequence[int], max_tokens: int, eos: int | None = EOS
) -> tuple[int, ...]:
    """transformers' greedy choice at each place of an output and behind it, from one pass over prompt and output.

    It equals the output only if greedy generation gives that output: by induction, token by token. ``eos`` is cut off
    with all behind it; None lets nothing end an output.
    """
    return greedy_beside_each(model, [prompt_ids], [output], max_tokens, eos)[0]


def greedy_beside_each(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    outputs: Sequence[Sequence[int]],
    max_tokens: int,
    eos: int | None = EOS,
) -> list[tuple[int, ...]]:
    """The same of several prompts, from one pass over all of them."""
    texts = [[*prompt, *output] for prompt, output in zip(prompts, outputs, strict=True)]
    found = []
    for prompt, logits in zip(prompts, batched_reference_logits(model, texts), strict=True):
        chosen = logits[len(prompt) - 1 :].argmax(dim=-1).tolist()[:max_tokens]
        found.append(tuple(chosen[: chosen.index(eos)] if eos in chosen else chosen))
    return found


def decoder_logits(decoder: Decoder, token_ids: Sequence[int] = PROMPT) -> torch.Tensor:
    """Logits of every position of one prompt, ``[len(token_ids), vocab_size]``."""
    return ragged_logits(decoder, [token_ids])[0]


@torch.no_grad()
def ragged_logits(
    decoder: Decoder, prompts: Sequence[Sequence[int]], chunk: int = 10_000, cache_dtype: str = "auto"
) -> list[torch.Tensor]:
    """The same of several prompts packed together, at most ``chunk`` tokens of each a step."""
    block_size = 4
    ends = [0]
    for prompt in prompts:
        ends.append(ends[-1] - (-len(prompt) // block_size))
    tables = [list(range(first, end)) for first, end in itertools.pairwise(ends)]
    states = StateConfig(num_slots=len(prompts))
    runner = ModelRunner(decoder, CacheConfig(num_blocks=ends[-1], block_size=block_size, dtype=cache_dtype), states)
    pool = StatePool(states)
    spans = [StateTable(pool, block_size) for _ in prompts]
    rows: list[list[torch.Tensor]] = [[] for _ in prompts]
    original = decoder.attention.spec.original_context
    for start in range(0, max(map(len, prompts)), chunk):
        parts = [(i, list(prompt[start : start + chunk])) for i, prompt in enumerate(prompts) if len(prompt) > start]
        plan = runner.plan(
            [
                TokenSlice(
                    len(tokens),
                    start,
                    tables[i],
                    spans[i].begin(start, start + len(tokens)),
                    is_long=original is not None and len(prompts[i]) > original,
                )
                for i, tokens in parts
            ]
        )
        logits = runner.forward(plan, [tokens for _, tokens in parts], range(plan.num_tokens))
        assert logits is not None
        for (i, part), offset in zip(parts, plan.offsets, strict=True):
            rows[i].append(logits[offset : offset + len(part)])
    return [torch.cat(parts) for parts in rows]


@torch.no_grad()
def reference_logits(model: PreTrainedModel, token_ids: Sequence[int] = PROMPT) -> torch.Tensor:
    """transformers' own, ``[len(token_ids), vocab_size]``."""
    return model(input_ids=torch.tensor([list(token_ids)])).logits[0]


@torch.no_grad()
def batched_reference_logits(model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """The same of several prompts in one pass, each ``[len(prompt), vocab_size]``.

    What fills shorter prompts up stands behind them, where none of their tokens looks.
    """
    longest = max(map(len, prompts))
    ids = torch.tensor([[*prompt, *[EOS] * (longest - len(prompt))] for prompt in prompts])
    return [rows[: len(prompt)] for rows, prompt in zip(model(input_ids=ids).logits, prompts, strict=True)]
